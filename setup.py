"Packaging: every value comes from settings.ini (nbdev 2.x layout)."
import shlex
from configparser import ConfigParser
from pathlib import Path

import setuptools

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

def words(key): return shlex.split(cfg.get(key, ""))

setuptools.setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], author_email=cfg["author_email"], keywords=cfg["keywords"].split(),
    license="Apache-2.0", url=cfg["git_url"], python_requires=">=" + cfg["min_python"],
    packages=setuptools.find_packages(include=["oamip_nb", "oamip_nb.*"]), include_package_data=True,
    install_requires=words("requirements"),
    extras_require={k.removesuffix("_requirements"): words(k) for k in cfg if k.endswith("_requirements")},
    long_description=(here/"README.md").read_text(encoding="utf-8") if (here/"README.md").exists() else "",
    long_description_content_type="text/markdown",
    entry_points={"console_scripts": words("console_scripts"), "nbdev": [f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d']},
)
