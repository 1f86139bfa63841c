"""The assistant pipeline in one picture: pretraining, supervised fine-tuning, reward model, reinforcement learning.

Sources: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, for the stages, and its table 6 for their training prompts;
Brown et al. 2020 (GPT-3), arXiv:2005.14165, table 2.1 for the tokens of pretraining.
"""

from __future__ import annotations

from labkit.show.display import figure
from labkit.show.style import PALETTE

STAGES = (
    ("Pretraining", "300 billion tokens\nof raw text", "predict the\nnext token", "base model", "blue"),
    ("Supervised\nfine-tuning", "12,725 prompts\nwith answers", "predict the\nanswer tokens", "SFT model", "green"),
    (
        "Reward\nmodelling",
        "33,207 prompts,\nanswers ranked",
        "score the better\nanswer higher",
        "reward model",
        "orange",
    ),
    ("Reinforcement\nlearning", "31,144 prompts\nwithout answers", "raise the reward", "assistant", "purple"),
)
ROWS = ("data", "objective", "result")


def pipeline_picture(highlight: int = 1) -> None:
    """Draw the pipeline; `highlight` is the stage (0–3) whose frame is drawn thick."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    fig, axis = plt.subplots(figsize=(8.6, 3.6))
    axis.set(xlim=(-0.62, 4), ylim=(-0.1, 3.5))
    axis.axis("off")
    for column, (name, *cells, colour) in enumerate(STAGES):
        thick = column == highlight
        box = FancyBboxPatch(
            (column + 0.05, 2.5), 0.8, 0.8, boxstyle="round,pad=0.03", facecolor=PALETTE[colour],
            edgecolor=PALETTE["black"], linewidth=3 if thick else 0,
        )  # fmt: skip
        axis.add_patch(box)
        dark = PALETTE["black"] if colour in ("orange", "purple") else "white"
        axis.text(column + 0.45, 2.9, name, ha="center", va="center", color=dark, weight="bold")
        for row, cell in enumerate(cells):
            axis.text(column + 0.45, 2.0 - 0.85 * row, cell, ha="center", va="center", fontsize=9)
        if column < len(STAGES) - 1:
            arrow = {"arrowstyle": "-|>", "color": PALETTE["black"]}
            axis.annotate("", (column + 1.02, 2.9), (column + 0.88, 2.9), arrowprops=arrow)
    for row, label in enumerate(ROWS):
        axis.text(-0.6, 2.0 - 0.85 * row, label, va="center", fontsize=9, style="italic", color=PALETTE["grey"])
    axis.set_title("Each stage starts from weights that an earlier one trained")
    spoken = "; ".join(f"{n}, on {d}, to {o}, gives the {r}" for n, d, o, r, _ in STAGES).replace("\n", " ")
    figure(fig, f"Four stages in a row, joined by arrows. {spoken}. Stage {highlight + 1} has a thick frame.")
