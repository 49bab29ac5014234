"""Extracting a PEFT adapter from a fine-tuned model: each matrix's delta becomes two factors.

What factors cannot hold and has changed is saved whole, where PEFT can hold it; what it cannot hold is refused by
name. Nothing is left out in silence.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltasmith.api import available_threads
from deltasmith.engine.coding import code
from deltasmith.engine.memory import DEFAULT_MEMORY
from deltasmith.engine.progress import Progress, Silent
from deltasmith.engine.workers import Stop
from deltasmith.errors import InterruptedRunError
from deltasmith.formats.adapter_writer import AdapterOutput, Origin
from deltasmith.formats.publish import side_files
from deltasmith.packing.adapter_merge import adapters_of_recipe, merge_adapters
from deltasmith.packing.extraction_plan import Extraction, Wish
from deltasmith.packing.extraction_records import ExtractResult, adapter_manifest
from deltasmith.packing.material import gather
from deltasmith.packing.records import hash_files
from deltasmith.packing.writing import Resources, open_base
from deltasmith.recipe.checks import is_recipe_file

__all__ = ["ExtractResult", "Wish", "extract_lora"]


def extract_lora(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    wish: Wish | None = None,
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> ExtractResult:
    """Write the PEFT adapter that takes `base` nearest to `model`: truncated singular values of each matrix's delta.

    `model` is a folder, a file, a hub id, a packed delta, an adapter, or a recipe (*.yaml). Linear layers, GPT-2's
    Conv1D and convolutions become factors; embeddings and heads too with `embed_lora`. What else has changed is saved
    whole: modules in `modules_to_save`, biases of linear layers in their place (`bias: all`). Tensors that did not
    change take no bytes. A head tied to the embedding comes once. The bytes depend on inputs and wish alone.

    A recipe that only sums adapters over this base is merged in factor space (`adapter_merge.merge_adapters`), to
    `max_rank` unless more is asked for; its manifest and notes say so.

    Raises:
        RefusedError: a vocabulary of another size or order, tensors that PEFT cannot hold and `drop` does not name
            (all listed), a model that does not differ, and what writing to `out` refuses.
        RecipeError: wishes that make no sense, a glob that matches nothing. ResourceError: a matrix does not fit
            `memory`. DamagedInputError: as `open_model`.
    """
    resources = Resources(threads or available_threads(), memory, progress or Silent(), stop or Stop())
    asked = wish or Wish()
    asked.codec()  # refuses numbers that make no sense
    ground = open_base(str(base))
    if is_recipe_file(model) and not asked.selective:
        adapters = adapters_of_recipe(model, ground)
        if adapters is not None:
            return merge_adapters(
                adapters,
                out,
                asked.goal(),
                base=ground,
                overwrite=overwrite,
                progress=resources.progress,
                stop=resources.stop,
            )
    material = gather(ground, str(model), Path(str(model)).stem or "model", resources.threads, resources.stop)
    job = Extraction(ground, material, asked)
    job.refuse_strangers()
    job.decide(resources.progress)
    return _write(job, Path(out), resources, overwrite)


def _write(job: Extraction, out: Path, resources: Resources, overwrite: bool) -> ExtractResult:
    """Decompose every matrix, copy what is kept whole, and publish the adapter."""
    began, stop = time.perf_counter(), resources.stop
    models = [("base", job.base), *job.material.opened]
    with (
        ThreadPoolExecutor(max_workers=1) as background,
        AdapterOutput.open(
            out, job.key, job.modules, job.arrangement, inputs=job.inputs, overwrite=overwrite
        ) as output,
    ):
        digests = background.submit(hash_files, models, stop)
        try:
            code(
                job.tasks(),
                output,
                threads=resources.threads,
                memory=resources.memory,
                stop=stop,
                progress=resources.progress,
            )
        except BaseException:
            stop.ask()  # nobody will want the hashes
            raise
        resources.progress.phase("checking the inputs", 0)
        hashes = digests.result()
        if stop.asked:  # some inputs may have no hash
            raise InterruptedRunError("interrupted", fix="run the same command again")
        for _, opened in models:
            opened.check_unchanged()
        late = output.publish(
            Origin(job.base.name, job.base.revision),
            side_files(None, job.material.folder).files,
            lambda entries: adapter_manifest(models, hashes, entries, "extract-lora", job.told),
        )
    whole = (*job.arrangement.whole, *job.arrangement.placed)
    seconds = time.perf_counter() - began
    warnings = (*job.material.warnings, *late)
    return ExtractResult(
        str(out), output.pairs, whole, job.dropped, output.nbytes, seconds, job.notes, warnings
    )
