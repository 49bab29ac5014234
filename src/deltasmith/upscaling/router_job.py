"""From examples to a router: tokenise, let the shared expert read them, train, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltasmith.errors import DamagedInputError, RecipeError, ResourceError
from deltasmith.formats.hashing import hash_bytes
from deltasmith.formats.output import Output
from deltasmith.table.checkpoint import Spec
from deltasmith.table.dtypes import DTYPES
from deltasmith.upscaling.examples import RouterData, RouterReport, divide
from deltasmith.upscaling.inputs import Inputs
from deltasmith.upscaling.job import Job, check_stop
from deltasmith.upscaling.settings import RouterShape, Settings, router_tensors

if TYPE_CHECKING:
    from deltasmith.upscaling.router_training import Trained

__all__ = ["RouterJob", "prepare_router"]


@dataclass(frozen=True)
class RouterJob:
    """A router to be trained: its data, its shape, and the examples' tokens, label by label."""

    data: RouterData
    shape: RouterShape
    rows: tuple[tuple[int, ...], ...] = field(repr=False)

    def added(self) -> list[Spec]:
        """List the specs of the router's tensors: float32, whatever the base is stored in."""
        shapes = router_tensors(self.shape, len(self.data.texts))
        return [Spec(name, shape, DTYPES["float32"]) for name, shape in shapes.items()]

    def train(self, job: Job, device: str) -> tuple[Trained, RouterReport]:
        """Load the shared expert, let it read the examples, and train on what it makes of them.

        Raises:
            InterruptedRunError: the caller wants no more. ResourceError: the memory does not suffice.
        """
        import torch

        from deltasmith.upscaling.router_training import train_router
        from deltasmith.upscaling.shared import examples_states, load_shared

        def advance(done: int) -> None:
            check_stop(job.stop)
            job.progress.advance(done)

        job.progress.phase("reading examples", len(self.rows))
        try:
            shared = load_shared(job.inputs.folder, job.shared_tensors(), device)
            states, cut = examples_states(shared, self.rows, check=advance)
            del shared
            job.progress.phase("training the router", 0)
            counts = [len(texts) for texts in self.data.texts.values()]
            labels = [label for label, count in enumerate(counts) for _ in range(count)]
            divided = divide(counts, self.data.seed)
            trained = train_router(
                states,
                labels,
                divided,
                self.shape,
                len(counts),
                epochs=self.data.epochs,
                seed=self.data.seed,
                check=lambda: check_stop(job.stop),
            )
        except (torch.OutOfMemoryError, MemoryError) as cause:
            raise ResourceError(
                "the memory does not suffice for the shared expert, which the router reads",
                fix="use a larger device, or leave --router-data out",
            ) from cause
        if not trained.epoch:
            raise DamagedInputError(
                "the router's loss is not finite", where="--router-data", fix="check the experts and the base"
            )
        report = RouterReport(
            trained.accuracy, trained.confusion, len(divided.training), trained.epoch, trained.epochs, cut
        )
        return trained, report

    def write(self, output: Output, trained: Trained) -> None:
        """Write the tensors that an earlier run has not finished."""
        for name, array in trained.tensors.items():
            if name not in output.finished:
                data: Any = memoryview(array.astype("<f4", copy=False).tobytes())
                output.write(name, 0, data)
                output.finish(name, hash_bytes(data))

    def notes(self, report: RouterReport) -> Iterator[str]:
        """Say what in the examples may hurt the router."""
        if shared := self.data.shared():
            yield f"{shared} router examples stand under several labels: no router can tell whose they are"
        if report.cut:
            yield f"{report.cut} router examples were longer than the model's context, and were cut"


def prepare_router(inputs: Inputs, settings: Settings, data: RouterData) -> RouterJob:
    """Tokenise the examples, and fix the router's shape.

    Raises:
        RecipeError: the preset is not `twin`, or weights are given. RefusedError: the base does not read text, or
        has no tokenizer. DamagedInputError: an example that does not tokenise.
    """
    if settings.preset != "twin":
        raise RecipeError("--router-data trains Twin-Merging's router", fix="add --preset twin")
    if settings.weights is not None:
        raise RecipeError("--weights would overrule the router of --router-data", fix="give one of them")
    from deltasmith.upscaling.shared import encoded, load_tokenizer, router_shape

    tokenizer = load_tokenizer(inputs.folder)
    shape = router_shape(inputs.folder, tokenizer)
    vocabulary = int(_text_config(inputs).get("vocab_size") or 1 << 31)
    rows = tuple(tuple(row) for row in encoded(data.texts, tokenizer, vocabulary))
    return RouterJob(data, shape, rows)


def _text_config(inputs: Inputs) -> dict[str, Any]:
    inner = inputs.config.get("text_config")
    return dict(inner if isinstance(inner, dict) else inputs.config)
