"""An export goes to a hub when it is asked for, and to nobody else's eyes by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def push_to_hub(folder: Path, repository: str, api: Any) -> str:
    """Uploads the folder in one commit and returns the address. A repository that is made for it is private; of one
    that is there, who may see it stays as it is.

    Args:
        repository: OWNER/NAME.
        api: a `huggingface_hub.HfApi`, with the token of its own settings.
    """
    address = api.create_repo(repository, private=True, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of bigssl, with its proof")
    return str(address)
