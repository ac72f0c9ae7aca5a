"""Whether a run fits into the memory and onto the disk that are free."""

import contextlib
import shutil
from pathlib import Path

import torch

from interp.counting.keep import Keep
from interp.counting.plan import plan_of, readable
from interp.models.neuron_model import NeuronModel
from interp.text.corpora import Corpora


def check_that_it_fits(
    model: NeuronModel, corpora: Corpora, keep: Keep, tokens_per_batch: int, folder: Path
) -> None:
    """Refuse a run whose results would not fit on the disk, or into memory while it counts or
    merges them; where free memory is unknown, that is not checked."""
    plan = plan_of(model, corpora, keep, tokens_per_batch)
    written = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    kept = [*keep.statistics, *(["contexts"] if keep.contexts else [])]
    needed = {
        "disk": (plan.disk - written, shutil.disk_usage(existing).free),
        "memory": (plan.results, free_memory(torch.device("cpu"))),
        f"memory of {model.device}": (plan.passing, free_memory(model.device)),
    }
    for resource, (needs, free) in needed.items():
        if free is not None and needs > free:
            raise ValueError(
                f"Keeping {', '.join(kept)} of {plan.neurons:,} neurons needs "
                f"{readable(needs, 'bytes')} of {resource}, where {readable(free, 'bytes')} are "
                "free: keep fewer statistics or contexts, or read fewer shards or languages; "
                "`interp plan` says what each takes."
            )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device; None: the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError, IndexError):
        if device.type == "cpu":
            text = Path("/proc/meminfo").read_text(encoding="ascii")
            return 1024 * int(text.partition("MemAvailable:")[2].split()[0])
    return None
