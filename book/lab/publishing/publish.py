"""Makes the copy of the book that a repository publishes, with the repository's own address in it.

    python -m lab.publishing.publish https://github.com/OWNER/NAME           # from the folder `book`
    python -m lab.publishing.publish https://github.com/OWNER/NAME BRANCH    # another branch than `colab`

The last commit is checked out in `_build/published` and stamped there: the first cell of a notebook can clone
the address, the pages know where GitHub serves them, and _config.yml gives each notebook's page a button that
opens it on Colab, from BRANCH of that repository. The stamped copy is committed on BRANCH, here; nothing is
pushed. `make publish` then builds the website from it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from .notebook import write_cell

ROOT = Path(__file__).parents[3]
FOLDER = Path("_build/published")
BUTTONS = """
repository:
  url: {address}
  branch: {branch}

launch_buttons:
  colab_url: https://colab.research.google.com
"""


def check_address(address: str) -> None:
    """Raises ValueError unless the address is that of a repository on GitHub."""
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(f"ADDRESS={address!r} must read https://github.com/OWNER/NAME")


def website(address: str) -> str:
    """Where GitHub Pages serves the website of a repository.

    >>> website("https://github.com/Some-One/book")
    'https://some-one.github.io/book/'
    """
    owner, name = address.split("/")[-2:]
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def stamp(root: Path, address: str, branch: str) -> None:
    """Writes an address into a copy of the book, in place: into _config.yml and the notebooks.

    Args:
        root: the copy.
        address: of a repository on GitHub, the only host from which Colab opens notebooks by their address.
        branch: of that repository, the one that will have the stamped notebooks.

    Raises:
        ValueError: the address is another one, or the copy is stamped already.
    """
    check_address(address)
    config = (root / "_config.yml").read_text()
    if re.search("^(repository|launch_buttons):", config, re.M):
        raise ValueError(f"{root / '_config.yml'} has an address already")
    config = config.replace("use_repository_button: false", "use_repository_button: true")
    site = website(address)
    config = config.replace("    ogp_", f"    ogp_site_url: {site}\n    ogp_", 1)
    path = "/" + site.split("/", 3)[3]
    config = config.replace("notfound_urls_prefix: /", f"notfound_urls_prefix: {path}")
    (root / "_config.yml").write_text(config + BUTTONS.format(address=address, branch=branch))
    for path in sorted((root / "book").glob("*.ipynb")):
        write_cell(path, address)


def publish(root: Path, address: str, branch: str) -> Path:
    """Checks the last commit out in a folder of its own, stamps it there, and commits that on a branch.

    Args:
        root: a git checkout of the book; its working tree stays as it is.
        address: of a repository on GitHub.
        branch: made anew, whatever it was before.

    Returns:
        The folder.
    """
    check_address(address)
    folder = root / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    _git(root, "worktree", "prune")
    _git(root, "worktree", "add", "--quiet", "-B", branch, folder, "HEAD")
    stamp(folder, address, branch)
    _git(folder, "commit", "--quiet", "--all", "--message", f"The notebooks with their address, {address}")
    return folder


def _git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    address, branch = [*sys.argv[1:], "colab"][:2]
    try:
        print(publish(ROOT, address, branch), "is committed on the branch", branch)
    except ValueError as error:
        raise SystemExit(str(error)) from None
