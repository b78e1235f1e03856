"""Style sheet of the widgets: columns by the width of the cell, colours of dark themes, tables that scroll."""

from __future__ import annotations

IMAGE_WIDTH = 600  # pixels; leaves room for controls and summary beside the figure on a laptop

# Figures are drawn on white, unless `codeq.plots.set_theme` has made them dark. Inverting lightness and turning hues
# back makes them dark without drawing them again, with the background of JupyterLab's dark theme. The selectors are
# those of JupyterLab, VS Code and Colab.
STYLESHEET = f"""<style>
.codeq-panel {{ container-type: inline-size; width: 100%; }}
.codeq-grid {{
  display: grid !important; column-gap: 12px; width: 100%; overflow: visible;
  grid-template-columns: minmax(0, 1fr) minmax(0, {IMAGE_WIDTH}px);
  grid-template-areas: "controls figure" "summary figure"; grid-template-rows: auto 1fr;
}}
.codeq-controls {{ grid-area: controls; min-width: 0; }}
.codeq-controls > *, .codeq-controls > .widget-hbox > * {{ max-width: calc(100% - 4px) !important; min-width: 0; }}
.codeq-picture {{ grid-area: figure; min-width: 0; }}
.codeq-summary {{ grid-area: summary; min-width: 0; }}
@container (max-width: 800px) {{
  .codeq-grid {{
    grid-template-columns: minmax(0, 1fr); grid-template-areas: "controls" "figure" "summary";
    grid-template-rows: auto;
  }}
}}
.codeq-hidden {{ display: none !important; }}
.codeq-controls .widget-readout {{ width: auto; min-width: 56px; max-width: none; flex: 0 0 auto; overflow: visible; }}
.codeq-figure {{ max-width: 100%; height: auto; display: block; }}
.codeq-clickable {{ cursor: crosshair; }}
.codeq-summary .widget-html-content, .codeq-scroll {{ overflow-x: auto; max-width: 100%; }}
:is([data-jp-theme-light="false"], body.vscode-dark, html[theme="dark"]) .codeq-figure:not(.codeq-drawn-dark) {{
  filter: invert(0.93) hue-rotate(180deg);
}}
</style>"""
