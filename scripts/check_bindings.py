#!/usr/bin/env python3
"""Checks docs/bindings.md, the table of what each language reaches, and that Go and Zig reach everything.

- Every field of fa_attention, fa_tensor and fa_quant, and every function of the header, is in the table once.
- A name in the column of a language exists in its binding. A dash is for what Rust and Python do not reach, and in the
  last table; where Rust has a method of that name after all, the dash is wrong.
- Go and Zig use every field, function and type of the header, but functions of the last table. So a header that grows
  is an error here until they have grown, too: which the script tries before it says that all is well.
- Zig's package has the version of the library.

    check_bindings.py REPOSITORY
"""

import ast
import copy
import re
import sys
from pathlib import Path

from c_header import Header

LANGUAGES = ("C++", "Rust", "Python", "Go", "Zig")
FIELDS = {"Fields of fa_attention": ("fa_attention",), "Fields of fa_tensor and fa_quant": ("fa_tensor", "fa_quant")}
FUNCTIONS, LEFT_OUT = "Functions", "Left out on purpose"
NAME = re.compile(r"`([^`]+)`")
# What C's functions give and take, which Zig's users do as C's do: as c.NAME.
WHOLE_IN_ZIG = ("fa_plan", "fa_sparse_config", "fa_sparse_lists")
# Those of the functions that are left out.
FROZEN = ("fa_config",)


def sources(root, *patterns):
    """Sources without comments of their own line or end, and without tests."""
    files = sorted(f for pattern in patterns for f in root.glob(pattern) if "_test." not in f.name)
    return re.sub(r"//[^\n]*", "", "\n".join(f.read_text() for f in files))


def bodies(text, opening, end):
    """Names of types, and what lies between their braces."""
    for match in re.finditer(opening, text, re.MULTILINE):
        yield match[1], text[match.end() : text.index(end, match.end() - 1)]


def names_of_go(text):
    names = set(re.findall(r"^(?:func|type|const) (\w+)", text, re.MULTILINE))
    names |= {f"{kind}.{name}" for kind, name in re.findall(r"^func \(\w* ?\*?(\w+)\) (\w+)", text, re.MULTILINE)}
    for kind, body in bodies(text, r"^type (\w+) struct \{", "\n}"):
        for line in body.splitlines():
            if field := re.match(r"\t((?:\w+, )*\w+)\s+\S", line):
                names |= {f"{kind}.{name}" for name in field[1].split(", ")}
    return names


def names_of_zig(text):
    names = set(re.findall(r"^pub (?:fn|const) (\w+)", text, re.MULTILINE))
    opening = r"^ *pub (?:const|fn) (\w+)(?: = struct|\(comptime \w+: type\) type) \{"
    for kind, body in bodies(text, opening, "\n}"):
        names |= {f"{kind}.{name}" for name in re.findall(r"^ +(?:pub fn )?(\w+)(?:\(|: )", body, re.MULTILINE)}
    return names


def names_of_rust(root):
    files = [*(root / "src").glob("*.rs"), *(root / "src/attention").glob("*.rs")]
    text = "\n".join(f.read_text() for f in sorted(files))
    uses = re.findall(r"^pub use [^;]*;", (root / "src/lib.rs").read_text(), re.MULTILINE)
    exported = set(re.findall(r"\w+", " ".join(uses)))
    names = exported & set(re.findall(r"pub (?:fn|struct|enum) (\w+)", text + (root / "src/view/quant.rs").read_text()))
    for kind, body in bodies(text, r"^impl(?:<[^>]*>)? (\w+)(?:<[^>]*>)? \{", "\n}"):
        names |= {f"{kind}::{name}" for name in re.findall(r"pub fn (\w+)", body)}
    return names


def names_of_python(root):
    folder = root / "bindings/python/cpu_attention"
    names = set(ast.literal_eval(re.search(r"__all__ = (\[.*?\])", (folder / "__init__.py").read_text(), re.DOTALL)[1]))
    for node in ast.walk(ast.parse((folder / "_attention.py").read_text())):
        if isinstance(node, ast.ClassDef) and node.name in ("Fields", "Options"):
            names |= {line.target.id for line in node.body if isinstance(line, ast.AnnAssign)}
        elif isinstance(node, ast.ClassDef) and node.name in names:
            names |= {f"{node.name}.{line.name}" for line in node.body if isinstance(line, ast.FunctionDef)}
    return names


def names_of_cpp(text, header):
    names = {f"->{field}" for field in header.fields["fa_attention"]} | set(header.fields)
    for kind, body in bodies(text, r"^(?:template <[^\n]*> )?(?:class|struct) (\w+) \{", "\n};"):
        names |= {kind} | {f"{kind}::{name}" for name in re.findall(r"\b(\w+)\(", body)}
    return names | set(re.findall(r"^(?:[\w\[\]<>:, ]+ )?(\w+)\([^;]*?\{$", text, re.MULTILINE))


def tables(page):
    """Rows of each section that has a table: names of C, and the cells of languages."""
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
        if rows:
            yield section.splitlines()[0], rows[0], rows[2:]


def check_page(header, page, names, errors):
    found, left_out = {}, set()
    for title, head, rows in tables(page):
        if head != ["C", *LANGUAGES]:
            errors.append(f"{title}: the languages are not {LANGUAGES}")
            continue
        for row in rows:
            ours = NAME.findall(row[0])
            found.setdefault(title, []).extend(ours)
            if title == LEFT_OUT:
                left_out.update(ours)
            for language, cell in zip(LANGUAGES, row[1:], strict=True):
                for name in NAME.findall(cell):
                    if name not in names[language]:
                        errors.append(f"{title}: {language} has no {name}")
                if cell == "–" and title != LEFT_OUT and language not in ("Rust", "Python"):
                    errors.append(f"{title}: {language} does not reach {row[0]}")
                if cell == "–" and language == "Rust":
                    methods = [name for name in ours if {name, f"Attention::{name}"} & names["Rust"]]
                    errors.extend(f"{title}: Rust has {name}, by the same name" for name in methods)
    wanted = {title: {f for s in structures for f in header.fields[s] if not f.startswith(("struct_size", "reserved"))}
              for title, structures in FIELDS.items()}
    wanted[FUNCTIONS], wanted[LEFT_OUT] = set(header.functions) - left_out, left_out & set(header.functions)
    for title, expected in wanted.items():
        listed = found.get(title, [])
        errors.extend(f"{title}: no row for {name}" for name in sorted(expected - set(listed)))
        errors.extend(f"{title}: {name} is not in the header" for name in sorted(set(listed) - expected))
        twice = sorted({name for name in listed if listed.count(name) > 1})
        errors.extend(f"{title}: {name} is there more than once" for name in twice)
    return left_out


def check_use(header, language, text, left_out, errors):
    """That a binding uses what the header has."""
    # In Go a name that begins with a small letter behind a point is one of C's.
    use = r"(?:\.|->){0}\b|\b{0}:" if language == "Go" else r"(?:\b(?:a|t|to|cfg|pool|quant)\.|\"){0}\b"
    for structure, fields in header.fields.items():
        if structure in FROZEN or (language == "Zig" and structure in WHOLE_IN_ZIG):
            continue
        for field in fields:
            if not field.startswith("reserved") and not re.search(use.replace("{0}", field), text):
                errors.append(f"{language} does not use {structure}.{field}")
    for function in header.functions.keys() - left_out:
        if not re.search(rf"\b{function}\b", text):
            errors.append(f"{language} does not use {function}")
    for name in header.enumerators:
        if name.startswith("FA_DTYPE_") and not re.search(rf"\b{name}\b", text):
            errors.append(f"{language} has no {name}")


def check(header, page, names, texts):
    errors = []
    left_out = check_page(header, page, names, errors)
    for language in ("Go", "Zig"):
        check_use(header, language, texts[language], left_out, errors)
    return errors


def prove(header, *arguments):
    """What is said of a header that has grown."""
    grown = copy.deepcopy(header.__dict__)
    other = object.__new__(Header)
    other.__dict__.update(grown)
    other.fields["fa_attention"]["not_there"] = "int64_t"
    other.functions["fa_not_there"] = "void (void)"
    other.enumerators["FA_DTYPE_NOT_THERE"] = "99"
    said = "\n".join(check(other, *arguments))
    uses = ("does not use fa_attention.not_there", "does not use fa_not_there", "has no FA_DTYPE_NOT_THERE")
    wanted = [f"{language} {use}" for language in ("Go", "Zig") for use in uses]
    wanted += ["no row for not_there", "no row for fa_not_there"]
    return [f"A header that has grown is not noticed: '{words}' is not said" for words in wanted if words not in said]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = Path(sys.argv[1]).resolve()
    header = Header((root / "include/flash_attention.h").read_text())
    texts = {
        "Go": sources(root, "bindings/go/*.go", "bindings/go/*.h"),
        "Zig": sources(root, "bindings/zig/attention.zig"),
    }
    names = {
        "C++": names_of_cpp(sources(root, "include/flash_attention.hpp"), header),
        "Rust": names_of_rust(root),
        "Python": names_of_python(root),
        "Go": names_of_go(texts["Go"]),
        "Zig": names_of_zig(texts["Zig"]) | {"c"},
    }
    page = (root / "docs/bindings.md").read_text()
    errors = check(header, page, names, texts) or prove(header, page, names, texts)
    versions = [re.search(r'^ *\.?version = "(.*)"', (root / f).read_text(), re.MULTILINE)[1]
                for f in ("Cargo.toml", "bindings/zig/build.zig.zon")]
    if len(set(versions)) > 1:
        errors.append(f"Zig's package is version {versions[1]} instead of {versions[0]}")
    for error in errors:
        print(error)
    if not errors:
        rows = sum(len(rows) for _, _, rows in tables(page))
        print(f"{rows} rows, {len(header.functions)} functions: Go and Zig reach what they are to.")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
