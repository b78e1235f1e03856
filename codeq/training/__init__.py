"""The parts of a training: objective, distillation, distributed training, interruption, resuming and reporting."""
