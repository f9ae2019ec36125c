"""A folder to the Hugging Face hub."""

from pathlib import Path

from mlx_rtx.support.errors import UserError


def upload(folder: Path, repository: str, private: bool = False) -> str:
    """Put all files of ``folder`` into a model repository, which is made where it is missing.

    Args:
        folder: what `mlx_rtx.export` wrote.
        repository: ``USER/NAME``.
        private: whether a new repository is.

    Returns:
        The address of the commit.

    Raises:
        UserError: ``huggingface_hub`` is missing, or the hub refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, HTTPError  # the latter of the library it calls by
    except ImportError:
        raise UserError("--upload: needs huggingface_hub; pip install 'mlx-rtx[export]'") from None
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by mlx_rtx")
    except (HTTPError, HFValidationError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"--upload {repository}: {said}; hf auth login, and name a repository of yours") from None
    return str(done.commit_url)
