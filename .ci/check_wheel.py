"""Build the wheel and hold it against the repository: every module is in it, nothing else is, and
it runs elsewhere.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"pyro_vae": "pyro_vae", "models": "pyro_vae/models", "guides": "pyro_vae/guides"}


def main(work: Path) -> None:
    """Exit with a message where the wheel is not what the repository holds."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", work, ROOT], check=True
    )
    (wheel,) = work.glob("*.whl")
    expected = {"pyro_vae/py.typed"}
    for folder, package in PACKAGES.items():
        for file in (ROOT / folder).rglob("*.py"):
            expected.add(f"{package}/{file.relative_to(ROOT / folder).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(work / "installed")
    if found != expected:
        sys.exit(
            f"the wheel lacks {sorted(expected - found)} and has too much: "
            f"{sorted(found - expected)}"
        )
    check = """
from pyro_vae import guides, models
from pyro_vae.cli import entry

print(models.__file__)
raise SystemExit(entry.main(["list", "guide"]))
"""
    subprocess.run(
        [sys.executable, "-c", check], check=True, cwd=work / "installed", stdout=subprocess.DEVNULL
    )
    print(f"{wheel.name}: {len(found)} files, as in the repository; it imports and lists its parts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
