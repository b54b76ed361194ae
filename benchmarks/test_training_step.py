"""One training step of each paper on stored features: ours, plain PyTorch, and torch.compile of the plain.

Ours is the step of `capbench.training`: length-grouped batches (mixed lengths for the alignment), the core's kernels,
the fused optimiser, averaged weights where the recipe has them, deterministic algorithms, and bf16 if native. Plain:
batches in random order padded to their longest caption, fp32, torch's default Adam, and the references in place of the
kernels: packed sequences and the whole matrix for VSE++, as in the original code, and the whole tensor [image, caption,
region, word] for the alignment. Compiled: the plain batches and functions with the optimiser and precision of ours. All
take as many captions a step, with the same objective and clipping, and all read the loss. A call does a step on each of
several batches, whose widths represent an epoch. Batches are on the device before timing; features are noise, because
the time does not depend on their values.

Later in the training of VSE++ the max of hinges leaves more and more captions without a gradient, which the CPU's
prefix tree exploits: one variant is a step in which half of the captions have none. Compiling unrolled recurrences
takes minutes on a CPU, so there only the step of Show and Tell is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Steps, Variant, rows, through_all, training_dtype
from benchmarks.captions import EPOCH, batches, encoded
from benchmarks.parity import near
from capbench.captioners.experiment import cross_entropy
from capbench.data.vocabulary import PAD
from capbench.kernels.attention.reference import reference_attention_step
from capbench.kernels.gru.reference import reference_last_hidden
from capbench.kernels.log_prob.reference import reference_target_log_probs
from capbench.kernels.maxsim.reference import reference_maxsim
from capbench.kernels.ranking_loss.reference import reference_ranking_loss
from capbench.runs.paper import paper
from capbench.timing.measure import Call
from capbench.training.loop import AveragedWeights, make_optimizer
from capbench.training.machine import bf16_where_native
from reproductions.karpathy.alignment import AlignmentModel
from reproductions.karpathy.objective import structured_margin
from reproductions.show_and_tell.model import ShowAndTell
from reproductions.show_and_tell.objective import objective as show_and_tell
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.show_attend_tell.objective import objective as show_attend_tell
from reproductions.translational.model import Translator
from reproductions.vsepp.model import VSE
from reproductions.vsepp.objective import objective as vsepp

FEATURE, LOCATIONS, REGIONS, CHECKED = 1280, 49, 20, 16


@dataclass(frozen=True)
class Trained:
    """A model, its objective and its features."""

    name: str
    recipe: Any
    build: Callable[[Any], nn.Module]  # from the recipe
    loss: Callable[..., Tensor]  # of the model, features, captions and lengths
    features: tuple[int, ...]  # the shape of an image's features
    batch: int = 64
    grouped: bool = True  # whether batches hold captions of similar length
    # What replaces the core's kernels in the plain step, by the name under which they are called.
    plain: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


def ranked(model: VSE, features: Tensor, captions: Tensor, lengths: Tensor, silent: float = 0.0) -> Tensor:
    """The max of hinges; a share `silent` of the captions gets no gradient."""
    f, g = model.embed_images(features), model.embed_captions(captions, lengths)
    pair = torch.arange(len(g), device=g.device)
    if silent:
        g = torch.where((pair >= silent * len(g))[:, None], g, g.detach())
    return vsepp(model.recipe, f.float(), g.float(), pair, model.recipe.warmup)


def written(model: Translator, features: Tensor, captions: Tensor) -> Tensor:
    return cross_entropy(model(features, captions), captions)


def aligned(model: AlignmentModel, features: Tensor, captions: Tensor, lengths: Tensor) -> Tensor:
    """Without START and END, which no region shows."""
    similarity = model(features, captions[:, 1:-1], lengths - 2)
    return structured_margin(similarity, torch.arange(len(captions), device=captions.device), model.recipe.margin)


def without_lengths(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda model, features, captions, lengths: loss(model, features, captions)


def of_paper(name: str, preset: str) -> Any:
    return paper(name).recipe(preset, "flickr8k")


RANKED = Trained(
    "VSE++", of_paper("vsepp", "vsepp-ours"), lambda recipe: VSE(recipe, len(encoded()[0]), FEATURE), ranked,
    (FEATURE,), batch=128,
    plain={"reproductions.vsepp.model.last_hidden": reference_last_hidden,
           "reproductions.vsepp.objective.ranking_loss": reference_ranking_loss},
)  # fmt: skip
WORDS = {"capbench.captioners.experiment.target_log_probs": reference_target_log_probs}
ATTENTION = WORDS | {"capbench.captioners.layers.attention_step": reference_attention_step}
TRAINED = (
    RANKED,
    Trained("Show and Tell", of_paper("show_and_tell", "nic-ours"),
            lambda recipe: ShowAndTell(recipe, len(encoded()[0]), FEATURE), without_lengths(show_and_tell), (FEATURE,),
            plain=WORDS),
    Trained("Show, Attend and Tell, soft", of_paper("show_attend_tell", "soft-ours"),
            lambda recipe: ShowAttendTell(recipe, len(encoded()[0]), FEATURE), without_lengths(show_attend_tell),
            (LOCATIONS, FEATURE), plain=ATTENTION),
    Trained("translational, LSTM", of_paper("translational", "lstm"),
            lambda recipe: Translator(recipe, encoded()[0], FEATURE), without_lengths(written), (LOCATIONS, FEATURE),
            plain=ATTENTION),
    Trained("alignment", of_paper("karpathy", "brnn-ours"),
            lambda recipe: AlignmentModel(recipe, len(encoded()[0]), FEATURE), aligned, (REGIONS, FEATURE),
            grouped=False, plain={"reproductions.karpathy.alignment.maxsim": reference_maxsim}),
)  # fmt: skip


@contextmanager
def replaced(stand_ins: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch(name, stand_in))
        yield


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class Step:
    """A training step, with its operations in the order of `capbench.training`."""

    def __init__(self, what: Trained, ours: bool, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.model, self.training = what.build(what.recipe).to(DEVICE), what.recipe.training
        self.loss_of = torch.compile(what.loss) if compiled else what.loss
        self.parameters = list(self.model.parameters())
        if ours or compiled:
            self.precision, self.optimizer = self.training.precision, make_optimizer(self.training, self.parameters)
        else:
            self.precision, self.optimizer = "full", torch.optim.Adam(self.parameters, self.training.learning_rate)
        self.averaged, self.steps = AveragedWeights(self.training.ema_decay if ours else 0.0, self.parameters), 0

    def loss(self, *batch: Tensor) -> Tensor:
        with bf16_where_native(DEVICE, self.precision):
            return self.loss_of(self.model, *batch)

    def __call__(self, *batch: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*batch)
        value = float(loss.detach())
        loss.backward()
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        if self.training.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, self.training.clip_value)
        self.optimizer.step()
        self.steps += 1
        self.averaged.add(self.steps)
        return value


def step(what: Trained, ours: bool, compiled: bool = False) -> Call:
    """A call that does a step on each of the batches."""
    features = torch.randn(what.batch, *what.features, device=DEVICE).relu()
    chosen = batches(what.batch, grouped=ours and what.grouped)
    steps = through_all(Step(what, ours, compiled), [(features, *batch) for batch in chosen])

    def call() -> None:
        with replaced({} if ours else what.plain), deterministic(ours):
            steps()

    return call


def check(what: Trained) -> None:
    """Ours and plain give the same loss and gradient on a few captions, without dropout, in full precision."""
    features = torch.randn(CHECKED, *what.features, device=DEVICE).relu()
    captions, lengths = batches(CHECKED, False)[0]
    longer = nn.functional.pad(captions, (0, 5), value=PAD)
    found = []
    for ours, ids in ((True, captions), (False, longer)):
        built = Step(what, ours)
        built.precision = "full"
        for module in built.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with replaced({} if ours else what.plain):
            loss = built.loss(features, ids, lengths)
        gradients = torch.autograd.grad(loss, [p for p in built.parameters if p.requires_grad], allow_unused=True)
        found.append((loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])))
    for one, other, name in zip(*found, ("loss", "gradient"), strict=True):
        near(one, other, 1e-3, f"training step, {what.name}: {name}")


def steps(what: Trained) -> Steps:
    variants = {"ours": Variant(partial(step, what, ours=True), ours=True)}
    if what is RANKED and not ON_GPU:
        half_silent = replace(what, loss=partial(ranked, silent=0.5))
        variants["ours, half of the captions silent"] = Variant(partial(step, half_silent, ours=True), ours=True)
    variants["plain PyTorch, fp32"] = Variant(partial(step, what, ours=False))
    if ON_GPU or what.name == "Show and Tell":
        variants[f"{COMPILED} of the plain, in the type of ours"] = Variant(
            partial(step, what, ours=False, compiled=True)
        )
    return Steps(
        operation=f"training step, {what.name}", size=f"batch {what.batch}", numbers={"batch": what.batch},
        variants=variants, check=partial(check, what),
        dtype=training_dtype(what.recipe.training.precision), calls=EPOCH,
    )  # fmt: skip


@pytest.mark.timeout(1200)  # an unrolled recurrence takes minutes to compile
@rows([steps(what) for what in TRAINED])
def test_training_step(show, case: Steps, variant: str) -> None:
    show(case, variant)
