"""Whether the Hugging Face hub can be asked for what is not here yet."""

from pathlib import Path
from typing import Literal

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled


def check_reachable(
    name: str,
    file: str,
    kind: Literal["model", "dataset"] = "model",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> None:
    """Refuse, at once, what would have to be fetched from a hub that cannot be reached.

    Hugging Face's own loaders try for half a minute. `file` is one that every model or dataset of
    the hub has: where it has been fetched before, or where the hub answers at all, nothing is said,
    and the loader goes on.
    """
    try:
        fetched = try_to_load_from_cache(
            name, file, cache_dir=cache_dir, revision=revision, repo_type=kind
        )
        if isinstance(fetched, str):
            return
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision, repo_type=kind), token=token)
    except (HfHubHTTPError, HFValidationError):
        return
    except Exception as error:  # which ones there are hangs on the client of the version
        offline = isinstance(error, OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else str(error).strip().splitlines()[0]
        raise OSError(
            f"{name} is no folder here and has not been fetched before, and the hub cannot be "
            f"reached ({why}): check the name and the network, or give a folder that holds the "
            f"{kind}."
        ) from None
