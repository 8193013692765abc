"""Render the notebooks to _docs with pandoc, write README.md from nbs/index.ipynb, and check every internal link.

    python tools/docs.py                  # README.md, nbs/images/index-*.png and _docs/*.html
    python tools/docs.py --readme         # only README.md and its figures
    python tools/docs.py --check-readme   # writes nothing: is README.md what nbs/index.ipynb says?

Pages, their order and names are those of _quarto.yml and nbdev, so `quarto render nbs` would make the same site with
its own theme. Figures are written as files: those of the pages to _docs/images, those of README.md to nbs/images.
"""
import base64, html, json, os, re, shutil, subprocess, sys, tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

os.environ.update(PYTHONWARNINGS="ignore", MPLBACKEND="agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
import nbformat, pypandoc, yaml
from nbdev.config import get_config
from nbdev.processors import FilterDefaults
from nbdev.serve import proc_nbs
from nbdev.serve_drv import main as process_notebook

ROOT = Path(__file__).resolve().parent.parent
TOOLS, NBS, OUT = ROOT/"tools", ROOT/"nbs", ROOT/"_docs"
README, FIGURES = ROOT/"README.md", NBS/"images"
OPTION = re.compile(r"^#\|\s*([\w-]+):\s*(.*?)\s*$", re.M)
STYLE = re.compile(r"<style.*?</style>", re.S)
CODE_LINK = re.compile(r"\[(`[^`]+`)\]\(https?://[^)\s]+\)")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)


# ---- notebooks to markdown

@dataclass
class Page:
    "One processed notebook: `figures` maps a file name to its bytes"
    notebook: str
    file: str
    title: str
    lead: str
    text: str
    figures: dict


def joined(x): return "".join(x) if isinstance(x, list) else x


def fence(text, lang=""):
    "A code block that no line of `text` can end"
    ticks = "`" * max(3, 1 + max((len(t) for t in re.findall(r"`+", text)), default=0))
    return f"{ticks}{lang}\n{text}\n{ticks}"


def options(src): return {k: v.strip("\"'") for k, v in OPTION.findall(src)}


def body(src): return re.sub(r"^#\|.*\n?", "", src, flags=re.M).strip("\n")


def figure(data, opts, stem, figures):
    "Markdown of an image output, whose bytes go to `figures`"
    svg = "image/png" not in data
    name = f"{stem}-{len(figures) + 1}.{'svg' if svg else 'png'}"
    figures[name] = joined(data["image/svg+xml"]).encode() if svg else base64.b64decode(joined(data["image/png"]))
    return f"![{opts.get('fig-cap', '')}](images/{name})" + "{" + f'alt="{opts.get("fig-alt") or opts.get("fig-cap") or f"Figure {len(figures)}"}"' + "}"


def web(data):
    "The HTML of an output without style sheets; empty for progress bars"
    text = STYLE.sub("", joined(data.get("text/html", ""))).strip()
    return "" if "<progress" in text else text


def printed(text):
    "Markdown of printed text: lines are broken at the edge of the page, unless they are columns"
    columns = sum("  " in line.strip() for line in text.splitlines()) > 1
    return f"::: {'out' if columns else '{.out .lines}'}\n{fence(text)}\n:::"


def merged(outputs):
    "The outputs with what was printed in pieces put together"
    whole = []
    for o in outputs:
        last = whole[-1] if whole else {}
        if o.output_type == last.get("output_type") == "stream" and o.name == last["name"]: last["text"] = joined(last["text"]) + joined(o.text)
        else: whole.append(nbformat.from_dict(o))
    return whole


def output(o, opts, stem, figures):
    "Markdown of one output of a cell"
    if o.output_type == "error": sys.exit(f"{stem}: a saved output is an error: {o.ename}: {o.evalue}")
    if o.output_type == "stream": return "" if o.name == "stderr" else printed(joined(o.text).strip("\n"))
    if "image/png" in o.data or "image/svg+xml" in o.data: return figure(o.data, opts, stem, figures)
    if opts.get("output") == "asis" or "text/html" not in o.data:
        for kind in "text/markdown", "text/latex":
            if kind in o.data: return joined(o.data[kind])
    if "text/html" in o.data: return f"::: out\n```{{=html}}\n{web(o.data)}\n```\n:::" if web(o.data) else ""
    return printed(joined(o.data.get("text/plain", "")))


def code(cell, stem, figures):
    "Markdown parts of a code cell and its outputs"
    opts, src = options(cell.source), body(cell.source)
    if opts.get("include") == "false": return
    if opts.get("echo") != "false" and src:
        text = fence(src, "python")
        if "code-fold" in opts and opts["code-fold"] != "false":
            shown = " open" if opts["code-fold"] == "show" else ""
            text = f"<details{shown}><summary>{html.escape(opts.get('code-summary', 'Code'))}</summary>\n\n{text}\n\n</details>"
        yield text
    if opts.get("output") != "false": yield from (output(o, opts, stem, figures) for o in merged(cell.get("outputs", [])))


def read_page(path):
    "Read a notebook that nbdev has processed"
    meta, parts, figures, stem = {}, [], {}, path.stem
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "raw" and cell.source.strip().startswith("---"): meta.update(yaml.safe_load(cell.source.strip().strip("-")) or {})
        elif cell.cell_type == "markdown": parts.append(cell.source)
        elif cell.cell_type == "code": parts += code(cell, stem, figures)
    return Page(path.name, meta.get("output-file") or f"{stem}.html", meta.get("title") or stem, meta.get("description") or "",
                "\n\n".join(p for p in parts if p), figures)


# ---- pandoc

def pandoc(text, *args):
    "Run pandoc on `text`"
    done = subprocess.run([pypandoc.get_pandoc_path(), *map(str, args)], input=text, text=True, capture_output=True)
    if done.returncode or done.stderr: sys.exit(f"pandoc {' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def nodes(tree):
    "Every element of a pandoc document"
    if isinstance(tree, dict):
        if "t" in tree: yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for x in tree: yield from nodes(x)


def relink(text, change):
    "The pandoc document of `text`, every link and image target passed through `change`; in code, where nbdev makes links too, words again"
    doc = json.loads(pandoc(text, "-f", "markdown", "-t", "json"))
    for n in nodes(doc):
        if n["t"] in ("Link", "Image"): n["c"][2][0] = change(n["c"][2][0])
        if n["t"] == "CodeBlock": n["c"][1] = CODE_LINK.sub(r"\1", n["c"][1])
        if n["t"] == "Table":
            for column in n["c"][2]: column[1] = {"t": "ColWidthDefault"}  # as wide as what is in it, not as the dashes in the source
    return doc


class Targets(HTMLParser):
    "The ids and the link and image targets of an HTML page"
    def __init__(self, text):
        super().__init__()
        self.ids, self.refs = set(), []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"): self.ids.add(attrs["id"])
        self.refs += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def broken(pages, folder):
    "Internal links of `pages` (file name -> HTML) that lead nowhere in `folder`"
    parsed = {name: Targets(text) for name, text in pages.items()}
    for name, page in parsed.items():
        for ref in page.refs:
            file, _, anchor = ref.partition("#")
            if file.startswith("attachment:"): yield f"{name}: {ref}: attachments are not rendered; save the image under nbs/images"
            elif SCHEME.match(ref): continue
            elif file and not (folder/file).exists(): yield f"{name}: {ref}"
            elif anchor and (file or name) in parsed and anchor not in parsed[file or name].ids: yield f"{name}: {ref}: no such anchor"


def raw_links(pages):
    "Links that stayed markdown: nbdev makes links of `code` words, and there is no link inside a link"
    for name, text in pages.items():
        for link in re.findall(r"\]\([^)\s]*\)?", re.sub(r"<(pre|code|style|math)\b.*?</\1>", "", text, flags=re.S)): yield f"{name}: {link}: not a link on the page; no `code` in the words of a link"


def settle(pages):
    "Point the links that nbdev makes of `code` words, where it documents no such anchor, at the class or else at the module"
    ids = {name: Targets(text).ids for name, text in pages.items()}
    def anchor(m):
        file, name = m[1], m[2]
        if file not in ids or name in ids[file]: return m[0]
        owner = name.rpartition(".")[0]
        if owner in ids[file]: return f'<a href="{file}#{owner}"><code>'
        return f'<a href="{file}"><code>' if name.startswith("_") else m[0]
    return {k: re.sub(r'<a\s+href="([^"#]+)#([^"]+)"><code>', anchor, text) for k, text in pages.items()}


# ---- README.md

def readme(page, site, notebooks):
    "The text of README.md; links to pages of the site become links to their notebooks"
    def change(url):
        url = url.removeprefix(site)
        file, _, anchor = url.partition("#")
        if SCHEME.match(url) or not file: return url
        if file in notebooks: return f"nbs/{notebooks[file]}"
        return os.path.normpath(f"nbs/{file}") + (f"#{anchor}" if anchor else "")
    doc = relink(f"# {page.title}\n\n{page.lead}\n\n{page.text}", change)
    doc["blocks"] = [b for top in doc["blocks"] for b in plain(top)]
    return pandoc(json.dumps(doc), "-f", "json", "-t", "gfm", "--wrap=none")


def plain(block):
    "A block without what GitHub does not show: boxes around outputs, raw HTML tables, attributes of images, comments"
    kind, parts = block["t"], block.get("c")
    if kind == "Div": return [b for inner in parts[1] for b in plain(inner)]
    if kind == "Figure": return [b for inner in parts[2] for b in plain({"t": "Para", "c": inner["c"]})]
    if kind == "RawBlock" and parts[1].startswith("<!--"): return []
    if kind == "RawBlock" and "<table" in parts[1]: return json.loads(pandoc(parts[1], "-f", "html-native_divs", "-t", "json"))["blocks"]
    for n in nodes(block):
        if n["t"] == "Image":
            (_, _, keys), text, _ = n["c"]
            n["c"][:2] = ["", [], []], text or [{"t": "Str", "c": dict(keys).get("alt", "")}]
    return [block]


def readme_files(page, site, notebooks):
    "What README.md and its figures should hold: path -> bytes"
    return {README: readme(page, site, notebooks).encode(), **{FIGURES/k: v for k, v in page.figures.items()}}


def stale(files):
    "The files of README.md that are missing, differ or are left over"
    yield from (p for p, data in files.items() if not p.exists() or p.read_bytes() != data)
    yield from (p for p in FIGURES.glob("index-*") if p not in files)


def write_readme(files):
    for p in [*stale(files)]:
        if p not in files: p.unlink(); continue
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(files[p])


def readme_links():
    "Broken links of README.md as it is on disk"
    return broken({"README.md": pandoc(README.read_text(encoding="utf-8"), "-f", "gfm", "-t", "html5")}, ROOT)


# ---- the site

def sidebar():
    "The (section, notebook) pairs of _quarto.yml in order; every notebook must be there"
    items = yaml.safe_load((ROOT/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    pairs = [(None, i) if isinstance(i, str) else (i["section"], n) for i in items for n in ([i] if isinstance(i, str) else i["contents"])]
    named, there = {n for _, n in pairs}, {p.name for p in NBS.glob("[!_.]*.ipynb")}
    errors = [f"nbs/{n} is not in the sidebar of _quarto.yml" for n in sorted(there - named)]
    errors += [f"_quarto.yml names {n}, which is not in nbs" for n in sorted(named - there)]
    if errors: sys.exit("\n".join(errors))
    return pairs


def site_nav(pairs, pages, current):
    "The list of pages, section by section"
    rows, last = [], None
    for (section, _), p in zip(pairs, pages):
        if section != last: rows.append(f'<li class="section">{html.escape(section or "")}</li>')
        last = section
        here = ' aria-current="page"' if p is current else ""
        rows.append(f'<li><a href="{p.file}"{here}>{html.escape(p.title)}</a></li>')
    return '<nav class="site" id="pages" aria-label="Pages"><ul>' + "\n".join(rows) + "</ul></nav>"


def neighbours(pages, current):
    "Links to the page before and the page after"
    i = pages.index(current)
    before = f'<a href="{pages[i-1].file}">← {html.escape(pages[i-1].title)}</a>' if i else "<span></span>"
    return before + (f'<a href="{pages[i+1].file}">{html.escape(pages[i+1].title)} →</a>' if i + 1 < len(pages) else "")


def page_link(site, files):
    "How a link in a notebook is written in its page; files of the repository that it names are copied to the site"
    def change(url):
        url = url.removeprefix(site)
        file, _, anchor = url.partition("#")
        if SCHEME.match(url) or not file: return url
        if file in files: return files[file] + (f"#{anchor}" if anchor else "")
        source, target = (NBS/file).resolve(), file.replace("../", "")
        if source.is_file() and source.is_relative_to(ROOT) and not (OUT/target).exists():
            (OUT/target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, OUT/target)
        return target + (f"#{anchor}" if anchor else "")
    return change


def render(page, pages, pairs, site):
    "One page as HTML"
    for name, data in page.figures.items(): (OUT/"images"/name).write_bytes(data)
    doc = relink(page.text, page_link(site, {p.notebook: p.file for p in pages}))
    lead = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(page.lead))
    values = {"sidebar": site_nav(pairs, pages, page), "neighbours": neighbours(pages, page), "lead": lead}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        json.dump({"variables": values}, f); f.flush()
        return pandoc(json.dumps(doc), "-f", "json", "-t", "html5", "-s", "--mathml", "--toc", "--toc-depth=3", "--template", TOOLS/"page.html",
                      "-M", f"pagetitle={page.title}", "-d", f.name)


def build(pages, pairs, site):
    "Write the site and return its broken links"
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT/"images").mkdir(parents=True)
    shutil.copy(TOOLS/"style.css", OUT)
    texts = settle({p.file: render(p, pages, pairs, site) for p in pages})
    for name, text in texts.items(): (OUT/name).write_text(text, encoding="utf-8")
    return [*broken(texts, OUT), *raw_links(texts)]


def notebook_of_page():
    "File name of each page -> its notebook, without processing it: nbdev names a page after its module"
    names = {}
    for p in NBS.glob("[!_.]*.ipynb"):
        exp = re.search(r'"#\| *default_exp +([\w.]+)', p.read_text(encoding="utf-8"))
        names[f"{exp[1] if exp else p.stem}.html"] = p.name
    return names


def index_page():
    "nbs/index.ipynb, processed alone"
    with tempfile.TemporaryDirectory() as tmp:
        process_notebook((NBS/"index.ipynb", Path(tmp)/"index.ipynb", FilterDefaults))
        return read_page(Path(tmp)/"index.ipynb")


def only_readme(site, write):
    "Write or compare README.md without the site; true if something is wrong"
    files = readme_files(index_page(), site, notebook_of_page())
    if write: write_readme(files)
    errors = [f"{p.relative_to(ROOT)}: not what nbs/index.ipynb says; run `make docs` and commit it" for p in stale(files)]
    errors = errors or [f"broken link: {e}" for e in readme_links()]
    print(*(errors or ["in sync: README.md and nbs/index.ipynb agree, its links lead somewhere"]), sep="\n")
    return bool(errors)


def main(args):
    os.chdir(ROOT)
    cfg = get_config()
    site = cfg.doc_host.rstrip("/") + cfg.doc_baseurl.rstrip("/") + "/"
    if args == ["--readme"]: return only_readme(site, write=True)
    if args == ["--check-readme"]: return only_readme(site, write=False)
    if args: sys.exit(__doc__)
    pairs = sidebar()
    cache = proc_nbs(force=True)
    pages = [read_page(cache/name) for _, name in pairs]
    index = next(p for p in pages if p.notebook == "index.ipynb")
    write_readme(readme_files(index, site, {p.file: p.notebook for p in pages}))
    errors = build(pages, pairs, site) + [*readme_links()]
    print(f"{len(pages)} pages in _docs, README.md written", *errors, sep="\n  broken link: ")
    return bool(errors)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
