"""The README's Python code runs, its links are valid, and its file tree is up to date."""

import re
from pathlib import Path

from mlx_rtx import train

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("ROMEO: and JULIET.\n" * 40)
    sizes = ["--length=16", "--dim=8", "--heads=2", "--block=4", "--batch=4", "--samples=4"]
    train.main(["text", "--data=text.txt", *sizes, "--out=runs/text"])
    capsys.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (8, 7, 16)
    assert names["gradients"].keys() == names["model"].trainable_parameters().keys()
    assert len(capsys.readouterr().out) == 200


def test_links_are_valid():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page.name, target)


def test_the_file_tree_is_up_to_date():
    (tree,) = re.findall(r"## The code\n\n(.*?)\n\n", README, re.DOTALL)
    packages = set(re.findall(r"([a-z_]+)/", tree))
    folders = {path.parent.name for path in ROOT.glob("mlx_rtx/*/__init__.py")}
    assert folders <= packages


def test_it_is_short():
    assert len(README.splitlines()) <= 180
