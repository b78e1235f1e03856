"""The channel graph of a model: operations, tracing, null channels and coupled groups."""
