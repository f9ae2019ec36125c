"""Uploads a folder to the Hugging Face hub."""

from pathlib import Path

from mlx_rtx.support.errors import UserError


def upload(folder: Path, repository: str, private: bool = False) -> str:
    """Upload all files of ``folder`` to a model repository, which is created if missing.

    Args:
        folder: folder that `mlx_rtx.export` wrote.
        repository: ``USER/NAME``.
        private: whether to make a new repository private.

    Returns:
        URL of the commit.

    Raises:
        UserError: if ``huggingface_hub`` is not installed, or the hub rejects the upload.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, HTTPError  # HTTPError: of its HTTP library
    except ImportError:
        raise UserError("--upload: needs huggingface_hub; pip install 'mlx-rtx[export]'") from None
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by mlx_rtx")
    except (HTTPError, HFValidationError, OSError) as error:
        message = " ".join(str(error).split())
        remedy = "log in with hf auth login, and name a repository of yours"
        raise UserError(f"--upload {repository}: {message}; {remedy}") from None
    return str(done.commit_url)
