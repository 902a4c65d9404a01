"""Configure: the settings that most runs are about as sliders and menus, all of them as text, and what they take."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from lorakit.models import spec
from lorakit.notebook.studio.tabs import WIDE, button, fold, layout, line, table, words

TITLE, PLACE = "Configure", 2
POWERS = [2**k for k in range(9)]
LENGTHS = [64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192]


def controls() -> dict[str, widgets.Widget]:
    """A control per setting, by its name in `Run`."""
    same = {"style": WIDE, "layout": layout()}
    return {
        "name": widgets.Text(description="Name", continuous_update=False, **same),
        "model": widgets.Combobox(
            description="Model",
            options=sorted(spec.known()),
            ensure_option=False,
            continuous_update=False,
            **same,
        ),
        "method": widgets.Dropdown(
            description="Method", options=[("LoRA", "lora"), ("all weights", "full")], **same
        ),
        "quantization": widgets.Dropdown(
            description="Base in",
            options=[
                ("as the machine allows", "auto"),
                ("4 bits (QLoRA)", "nf4"),
                ("8 bits", "int8"),
                ("FP8, fast on Ada and Hopper", "fp8"),
                ("16 or 32 bits", "none"),
            ],
            **same,
        ),
        "rank": widgets.SelectionSlider(description="Rank", options=POWERS, **same),
        "alpha": widgets.FloatLogSlider(
            description="Alpha", base=2, min=0, max=9, step=0.5, readout_format=".0f", **same
        ),
        "learning_rate": widgets.FloatLogSlider(
            description="Learning rate", min=-6, max=-1, step=0.01, readout_format=".1e", **same
        ),
        "epochs": widgets.IntSlider(description="Epochs", min=1, max=20, **same),
        "max_updates": widgets.BoundedIntText(
            description="Updates at most", min=0, max=10**9, **same
        ),
        "max_length": widgets.SelectionSlider(
            description="Tokens per row", options=LENGTHS, **same
        ),
        "global_batch_size": widgets.SelectionSlider(
            description="Rows per update", options=POWERS, **same
        ),
    }


class Tab:
    def __init__(self, studio: Any):
        self.studio, self.desk = studio, studio.desk
        self.controls = controls()
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self.moved(name, change["new"]), "value")
        self.plan = widgets.HTML()
        self.why = widgets.HTML()
        self.text = widgets.Textarea(
            description="RUN.yaml",
            rows=18,
            style=WIDE,
            continuous_update=False,
            layout=layout(max_width="60rem"),
        )
        use = button("Use these settings", self.read)
        more = [
            fold("All settings, as RUN.yaml", self.text, line(use)),
            fold("What was chosen for this machine, and why", self.why),
        ]
        hint = "Updates at most: 0 means by epochs."
        self.box = widgets.VBox(
            [self.plan, *self.controls.values(), widgets.HTML(words(hint, "quiet")), *more]
        )

    def shown(self) -> None:
        """Puts the settings into the controls."""
        with self.studio.quiet():
            for name, control in self.controls.items():
                value = getattr(self.desk.run, name)
                value = 0 if value is None else value
                if isinstance(control, (widgets.SelectionSlider, widgets.Dropdown)):
                    known = [o[1] if isinstance(o, tuple) else o for o in control.options]
                    if value not in known:  # of the file: kept, and shown as one more choice
                        control.options = (
                            [*control.options, value]
                            if isinstance(control, widgets.Dropdown)
                            else sorted([*known, value])
                        )
                control.value = value
            self.text.value = self.desk.text()
        self.studio.estimate()

    def moved(self, name: str, value: Any) -> None:
        if self.studio.filling:
            return
        value = None if name == "max_updates" and not value else value
        value = (
            float(f"{value:.2g}") if isinstance(value, float) else value
        )  # a slider's steps are no round numbers
        if self.studio.tried(lambda: self.desk.change(**{name: value}), self.plan):
            with self.studio.quiet():
                self.text.value = self.desk.text()
            self.studio.estimate()
        else:
            self.studio.forget_estimates()  # of the settings before, so that the refusal stays

    def read(self) -> None:
        if self.studio.tried(lambda: self.desk.read(self.text.value)):
            self.studio.say("these settings are used", "good")
            self.shown()

    def planned(self, found: Any, counting: bool) -> None:
        """Shows an estimate; `counting`: a closer one is on its way."""
        if found is None:
            self.plan.value = words("memory and time are being counted …", "quiet")
            return
        kind = "good" if found.fits else "error"
        verdict = "This fits: " if found.fits else "This cannot start: "
        more = f"\n{found.refusal}" if found.refusal else ""
        self.plan.value = words(verdict + found.words + (" …" if counting else "") + more, kind)
        if not counting:
            self.why.value = table(
                ["setting", "value", "why"],
                [[name, value, why] for name, (value, why) in self.desk.estimator.choices.items()],
            )
