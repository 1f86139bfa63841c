"""Deep stacks trained side by side: which normalization trains at which depth and learning rate.

The text is the course's film sentences as bytes, and a stack predicts the next byte. Bytes keep embedding and output
small beside the layers, which are the subject, and give a clear bar: a stack that ignores its input can do no better
than the *unigram* loss, the entropy of single bytes. A run is judged by the mean loss of its last tenth of steps:

    diverged    it is not a number, or above the loss that the run started from
    stuck       not below the unigram loss by MARGIN: nothing of the input has reached the output so far
    learns      below it

Sources: Xiong et al. 2020 (arXiv:2002.04745) on gradients by layer and warm-up, Liu et al. 2020 (arXiv:2004.08249) and
Wang et al. 2022 (arXiv:2203.00555) on the size of the first updates.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from labkit import paths
from labkit.errors import LabError
from labkit.numerics.snapshots import Snapshot, snapshots
from labkit.numerics.stack import LAYER_PARAMETERS, DecoderStack, StackConfig
from labkit.sentences import read_shipped

OUTCOMES = ("learns", "stuck", "diverged")
MARGIN = 0.1  # nats; several times the noise of a mean over a tenth of the steps
BETAS, EPS = (0.9, 0.98), 1e-8  # Adam's, as in the DeepNet paper's language-model runs


@cache
def text() -> Int[Tensor, " bytes"]:
    """The shipped training sentences as one line of bytes each."""
    lines = "\n".join(r.text for r in read_shipped(paths.DATA / "sentiment")["train"])
    return torch.tensor(list(lines.encode("utf-8")))


@cache
def unigram_loss() -> float:
    """Entropy of single bytes of the text, in nats: the best loss without looking at the input."""
    share = torch.bincount(text()).double() / len(text())
    share = share[share > 0]
    return -(share * share.log()).sum().item()


def batches(seeds: Sequence[int], step: int, batch: int, seq_len: int) -> Int[Tensor, "runs batch seq_plus_1"]:
    """Random pieces of the text for each run; they depend on the run's seed and the step only."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        first = torch.randint(len(text()) - seq_len, (batch, 1), generator=generator)
        drawn.append(text()[first + torch.arange(seq_len + 1)])
    return torch.stack(drawn)


def losses_of(stack: DecoderStack, tokens: Int[Tensor, "runs batch seq_plus_1"]) -> Float[Tensor, " runs"]:
    """Mean next-byte loss of each run, in nats. The runs share no weights, so the sum's gradient is each one's own."""
    logits = stack(tokens[:, :, :-1])
    targets = tokens[:, :, 1:].reshape(stack.runs, -1)
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


def gradient_norms(stack: DecoderStack) -> Float[Tensor, "layers runs"]:
    """Euclidean norm of the gradient of all parameters of a layer, for each layer and run."""
    squares = torch.zeros(stack.config.layers, stack.runs, device=stack.qkv.device)
    for name in LAYER_PARAMETERS:
        gradient = getattr(stack, name).grad
        if gradient is None:
            raise LabError("There are no gradients yet.", "Call backward() on a loss first.")
        squares += gradient.float().flatten(2).square().sum(-1)
    return squares.sqrt()


class RunwiseAdam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) with a learning rate and a linear warm-up for each run of a stack.

    Equal to `torch.optim.Adam` on each run alone (tests/numerics/test_depth.py); one tensor operation serves all runs.
    """

    def __init__(self, stack: DecoderStack, rates: Sequence[float], warmups: Sequence[int] | None = None) -> None:
        self.parameters, device = list(stack.parameters()), stack.qkv.device
        self.rates = torch.tensor(rates, device=device)
        self.rise = torch.tensor(warmups or [0] * stack.runs, device=device).clamp(min=1)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0
        # What changes from step to step lives in tensors, so that a CUDA graph can replay `apply`.
        self._rate, self._correction = torch.zeros_like(self.rates), self.rates.new_ones(())

    def advance(self) -> None:
        """Count a step, and set what `apply` will use: the learning rates of this step, and bias corrections."""
        self.steps += 1
        share = (self.steps / self.rise).clamp(max=1)
        self._rate.copy_(self.rates * share / (1 - BETAS[0] ** self.steps))
        self._correction.fill_(1 - BETAS[1] ** self.steps)

    @torch.no_grad()
    def apply(self) -> None:
        """Update the parameters, and drop their gradients."""
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            assert p.grad is not None
            m.lerp_(p.grad, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(p.grad, p.grad, value=1 - BETAS[1])
            width = v.div(self._correction).sqrt_().add_(EPS)
            p.addcmul_(m / width, self._rate.view(1, -1, *[1] * (p.dim() - 2)), value=-1)
            p.grad = None

    def last_steps(self) -> Iterator[Tensor]:
        """The step just made over its learning rate, for every parameter."""
        for m, v in zip(self.first, self.second, strict=True):
            yield m / (1 - BETAS[0] ** self.steps) / (v.div(self._correction).sqrt_().add_(EPS))


@dataclass
class DepthRun:
    """One run of a stack: its losses, its gradient norm by layer before and after, and what became of it.

    Attributes:
        losses: of every step, in nats; `start` is the first one.
        gradients_first, gradients_last: gradient norm of each layer at the first and the last step.
        spread: share of the residual stream that differs between places, at the input and after each layer, at the end
            (`DecoderStack.stream_spreads`).
        update: root mean square by which the first step changes the last hidden state (itself of size about 1), on the
            batch that it was made on.
        step_ms: median time of a step of all runs of the group together.
        snapshots: what was asked for by `watch`, by the number of steps made.
    """

    config: StackConfig
    seed: int
    learning_rate: float
    warmup: int
    losses: list[float] = field(default_factory=list)
    gradients_first: list[float] = field(default_factory=list)
    gradients_last: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    update: float = float("nan")
    step_ms: float = float("nan")
    snapshots: dict[int, Snapshot] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """Loss before the first update, in nats."""
        return self.losses[0]

    @property
    def loss(self) -> float:
        """Mean loss of the last tenth of the steps, in nats."""
        return statistics.fmean(self.losses[-max(1, len(self.losses) // 10) :])

    @property
    def outcome(self) -> str:
        """One of OUTCOMES; see the module's head."""
        if not self.loss <= self.start:  # also true where it is not a number
            return "diverged"
        return "learns" if self.loss < unigram_loss() - MARGIN else "stuck"

    @property
    def stopped_at(self) -> int | None:
        """The first step whose loss is not a finite number, or None."""
        return next((i for i, loss in enumerate(self.losses) if not abs(loss) < float("inf")), None)


def train_stack(
    config: StackConfig,
    seeds: Sequence[int],
    learning_rates: Sequence[float],
    *,
    steps: int,
    warmups: Sequence[int] = (0,),
    batch: int = 8,
    device: str = "cpu",
    watch: Sequence[int] = (),
) -> list[DepthRun]:
    """Train one stack for every learning rate, warm-up and seed, all at once.

    Args:
        seeds: of weights and data; runs of one seed begin alike and read the same text.
        steps, warmups: optimizer steps, and in how many of them the learning rate rises linearly (0: none).
        batch, watch: pieces of text a step, and after how many steps to take a snapshot of every run.
    """
    runs = [DepthRun(config, s, rate, warmup) for rate in learning_rates for warmup in warmups for s in seeds]
    if steps < 2 or batch < 1 or not runs:
        raise LabError(f"There is nothing to train: {steps} steps of {batch}.", "Give two steps or more, and rates.")
    stack = DecoderStack(config, [run.seed for run in runs]).to(device)
    step_once = _Step(stack, RunwiseAdam(stack, [r.learning_rate for r in runs], [r.warmup for r in runs]), batch)
    tokens, history, seconds = step_once.tokens, [], []
    for step in range(steps):
        tokens.copy_(batches(seeds, step, batch, config.seq_len).repeat(len(runs) // len(seeds), 1, 1))
        before = _hidden(stack, tokens) if step == 0 else None
        started = time.perf_counter()
        now, gradients = step_once()
        history.append(now.tolist())
        seconds.append(time.perf_counter() - started)
        if before is not None:
            _note(runs, "update", (_hidden(stack, tokens) - before).square().mean((1, 2)).sqrt().tolist())
            _note(runs, "gradients_first", gradients.T.tolist())
        if step + 1 in watch:
            step_once.take_snapshots(runs, gradients)
    _note(runs, "losses", [list(losses) for losses in zip(*history, strict=True)])
    _note_end(runs, step_once, gradients, 1000 * statistics.median(seconds))
    return runs


def _note_end(runs: list[DepthRun], last: _Step, gradients: Tensor, step_ms: float) -> None:
    _note(runs, "gradients_last", gradients.T.tolist())
    _note(runs, "spread", last.stack.stream_spreads(last.tokens[:, :, :-1]).T.tolist())
    _note(runs, "step_ms", [step_ms] * len(runs))


def _note(runs: list[DepthRun], name: str, values: Sequence) -> None:
    for run, value in zip(runs, values, strict=True):
        setattr(run, name, value)


@torch.no_grad()
def _hidden(stack: DecoderStack, tokens: Tensor) -> Tensor:
    return stack.hidden(tokens[:, :, :-1])


class _Step:
    """One training step on what stands in `tokens`: losses [runs] and gradient norms [layers, runs].

    A deep stack launches some ten thousand kernels a step. On a GPU the second call records them in a CUDA graph, and
    every later one replays it: one launch, the same values. Where recording fails, steps are made one kernel at a time.
    """

    def __init__(self, stack: DecoderStack, optimizer: RunwiseAdam, batch: int) -> None:
        self.stack, self.optimizer, device = stack, optimizer, stack.qkv.device
        self.tokens = torch.zeros(stack.runs, batch, stack.config.seq_len + 1, dtype=torch.int64, device=device)
        self.eager_calls = 1 if device.type == "cuda" else -1  # -1: for ever
        self.graph: torch.cuda.CUDAGraph | None = None
        self.results: tuple[Tensor, Tensor] | None = None

    def _compute(self) -> tuple[Tensor, Tensor]:
        losses = losses_of(self.stack, self.tokens)
        losses.sum().backward()
        gradients = gradient_norms(self.stack)
        self.optimizer.apply()
        return losses.detach(), gradients

    def __call__(self) -> tuple[Tensor, Tensor]:
        self.optimizer.advance()  # outside of what is recorded
        if self.eager_calls == 0 and self.graph is None:
            self._record()
        if self.eager_calls != 0:
            self.eager_calls -= self.eager_calls > 0
            return self._compute() if self.tokens.device.type != "cuda" else self._beside()
        assert self.graph is not None and self.results is not None
        self.graph.replay()
        return self.results

    def take_snapshots(self, runs: list[DepthRun], gradients: Tensor) -> None:
        """Note a snapshot of every run after the step that had these gradient norms [layers, runs]."""
        taken = snapshots(self.stack, self.tokens[:, :, :-1], gradients, self.optimizer.last_steps())
        for run, snapshot in zip(runs, taken, strict=True):
            run.snapshots[self.optimizer.steps] = snapshot

    def _beside(self) -> tuple[Tensor, Tensor]:
        """A step on a stream of its own: what it leaves behind must not tie a later recording to the main stream."""
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            results = self._compute()
        main.wait_stream(side)
        return results

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                self.results = self._compute()
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            warnings.warn(f"No CUDA graph ({why}); steps take several times longer.", stacklevel=2)
            self.stack.zero_grad(set_to_none=True)
            self.eager_calls = -1
        else:
            self.graph = graph
