"""A folder of weights becomes a repository of the Hugging Face hub, by the hub's own client."""

import os
import re

from maft_jax.hub.hugging_face import FAILURES, check_client, explained
from maft_jax.hub.names import HubName
from maft_jax.runtime.console import drawing


def check_upload(repository: str, *, private: bool) -> None:
    """Asks the hub who is logged in: what takes long should not end with a refusal.

    Args:
        private: whether what is uploaded must not be public.

    Raises:
        ValueError: no name of a repository, the client is missing, nobody is logged in, the hub
            refuses the token, or the repository is there and public although it must not be.
        OSError: the hub cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"--push={repository}: expected OWNER/NAME, such as --push=me/my-clip")
    check_client(f"--push={repository}")
    from huggingface_hub import HfApi, errors, get_token

    if get_token() is None:
        raise ValueError(
            f"--push={repository}: nobody is logged in: `hf auth login` with a token that may "
            "write, or set HF_TOKEN"
        )
    api = HfApi()
    try:
        api.whoami()
        public = private and api.repo_exists(repository) and not api.model_info(repository).private
    except (errors.HTTPError, *FAILURES) as error:
        raise explained(error, HubName(repository)) from error
    if public:
        raise ValueError(
            f"--push={repository} --private: expected a private repository or none, got one that "
            "everybody can read; make it private in its settings, or choose another name"
        )


def upload(folder: str | os.PathLike, repository: str, *, private: bool, message: str) -> str:
    """Uploads all files of a folder in one commit, and returns the address of the repository.

    Args:
        private: whether a repository that is made is private; one that exists stays as it is.

    Raises:
        ValueError: the token may not write there.
        OSError: the hub cannot be reached, or fails.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        with drawing():
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (errors.HTTPError, *FAILURES) as error:
        why = explained(error, HubName(repository))
        raise type(why)(
            f"{why}; {folder} is whole, upload it later: hf upload {repository} {folder}"
        ) from error
    return str(url)
