"""Joins the page's modules into one classic script, for pages that may not import (file://).

It knows these forms and refuses others: `import { a, b as c } from "./x.js"`, `import a from`, `export { a } from`,
`export function|class|const|let`, `export { a as b }`, `export default`. Each module becomes a function that returns
its exports; imported modules come first.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAMES = r"\{([^{}]*)\}"
_IMPORT = re.compile(rf'^import\s*(?:{_NAMES}|(\w+))\s*from\s*"([^"]+)";?', re.M)
_REEXPORT = re.compile(rf'^export\s*{_NAMES}\s*from\s*"([^"]+)";?', re.M)
_DECLARED = re.compile(r"^export\s+((?:async\s+)?function\*?|class|const|let)\s+(\w+)", re.M)
_DEFAULT = re.compile(r"(^|[;}])export\s+default\s+", re.M)
_LISTED = re.compile(rf"(^|[;}}])export\s*{_NAMES};?", re.M)
_LEFT = re.compile(r"(?:^|[;}])\s*(?:import|export)[\s{]", re.M)


class BundleError(ValueError):
    """A module uses a form of import or export that the bundler does not know; the message names the file."""


def bundle(entry: Path) -> str:
    """A script that is equivalent to loading the module `entry`.

    Raises:
        BundleError: an unknown form, or modules that import each other.
    """
    ready: dict[Path, str] = {}
    order: list[str] = []
    _add(entry.resolve(), ready, order, ())
    return '"use strict";\n(() => {\n' + "\n".join(order) + "\n})();\n"


def _add(path: Path, ready: dict[Path, str], order: list[str], above: tuple[Path, ...]) -> str:
    """Append the module and its imports to `order`; returns the name of its exports."""
    if path in above:
        raise BundleError(f"{path.name}: imports itself, by way of {', '.join(p.name for p in above)}")
    if path not in ready:
        code = path.read_text(encoding="utf-8")
        exports: dict[str, str] = {}

        def required(specifier: str) -> str:
            if not specifier.startswith("./"):
                raise BundleError(f"{path.name}: imports {specifier!r}; only ./files can be joined")
            return _add((path.parent / specifier).resolve(), ready, order, (*above, path))

        def imported(match: re.Match[str]) -> str:
            source = required(match[3])
            if match[2]:
                return f"const {match[2]} = {source}.default;"
            return f"const {{ {', '.join(f'{a}: {b}' for a, b in _pairs(match[1]))} }} = {source};"

        def reexported(match: re.Match[str]) -> str:
            source = required(match[2])
            exports.update({outer: f"{source}.{inner}" for inner, outer in _pairs(match[1])})
            return ""

        def declared(match: re.Match[str]) -> str:
            exports[match[2]] = match[2]
            return f"{match[1]} {match[2]}"

        def listed(match: re.Match[str]) -> str:
            exports.update({outer: inner for inner, outer in _pairs(match[2])})
            return match[1]

        def default(match: re.Match[str]) -> str:
            exports["default"] = "$default"
            return f"{match[1]}const $default = "

        for form, write in (
            (_REEXPORT, reexported),
            (_IMPORT, imported),
            (_DECLARED, declared),
            (_DEFAULT, default),
            (_LISTED, listed),
        ):
            code = form.sub(write, code)
        if left := _LEFT.search(code):
            raise BundleError(f"{path.name}: cannot join {code[left.start() : left.start() + 60]!r}")
        name = f"$m{len(ready)}"
        ready[path] = name
        given = ", ".join(f"get {outer}() {{ return {inner}; }}" for outer, inner in exports.items())
        order.append(f"// {path.name}\nconst {name} = (() => {{\n{code}\nreturn {{ {given} }};\n}})();")
    return ready[path]


def _pairs(names: str) -> list[tuple[str, str]]:
    """`a, b as c` -> [("a", "a"), ("b", "c")]."""
    pairs = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        inner, _, outer = name.partition(" as ")
        pairs.append((inner.strip(), (outer or inner).strip()))
    return pairs
