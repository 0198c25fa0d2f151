"""Reads include/flash_attention.h, as far as it goes: what a program that was compiled with it relies on."""

import ctypes
import re

SCALARS = {
    "bool": ctypes.c_bool, "float": ctypes.c_float, "double": ctypes.c_double, "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64,
}
STRUCTURE = re.compile(r"typedef struct (\w+) \{(.*?)\} \1;", re.DOTALL)
ENUMERATION = re.compile(r"typedef enum (\w+) \{(.*?)\} \1;", re.DOTALL)
POINTER_TO_FUNCTION = re.compile(r"(.+?)\(\*(\w+)\)\((.*)\)", re.DOTALL)
FUNCTION = re.compile(r"^([^;{}#]+?)(fa_\w+)\(([^;{}]*)\)$", re.DOTALL)


def of_library(text):
    """The header without comments and without helpers, which are no part of the library."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return re.sub(r"^#if [^\n]*FLASH_ATTENTION_HELPERS.*", "", text, flags=re.DOTALL | re.MULTILINE)


class Unreadable(Exception):
    pass


def one_line(text):
    return re.sub(r"\s+", " ", text.replace("struct ", "")).strip()


def types(parameters):
    """Parameters without their names."""
    return ", ".join(one_line(re.sub(r"(?<=[\s*])\w+$", "", part.strip())) for part in parameters.split(","))


class Header:
    def __init__(self, text):
        text = of_library(text)
        self.defines = dict(re.findall(r"^#define (FA_\w+) (.+)$", text, re.MULTILINE))
        self.enumerators = {}
        for _, body in ENUMERATION.findall(text):
            for entry in filter(None, map(str.strip, body.split(","))):
                if not re.fullmatch(r"FA_\w+ = \d+", entry):
                    raise Unreadable(entry)
                name, value = entry.split(" = ")
                self.enumerators[name] = value
        self.structures, self.fields = {}, {}
        for name, body in STRUCTURE.findall(text):
            self._structure(name, filter(None, map(str.strip, body.split(";"))))
        rest = re.sub(r'^#.*$|extern "C" \{|^\} *$', "", text, flags=re.MULTILINE)
        self.functions = {}
        for statement in filter(None, map(str.strip, ENUMERATION.sub("", STRUCTURE.sub("", rest)).split(";"))):
            alias = statement.startswith("typedef ") and POINTER_TO_FUNCTION.fullmatch(statement[len("typedef "):])
            match = alias or FUNCTION.fullmatch(statement)
            if not match:
                raise Unreadable(statement)
            result, name, parameters = match.groups()
            self.functions[name] = f"{one_line(result)}{' (*)' if alias else ' '}({types(parameters)})"

    def _structure(self, name, declarations):
        """A ctypes structure, and the types of its fields in words."""
        fields, words = [], {}
        for declaration in declarations:
            function = POINTER_TO_FUNCTION.fullmatch(declaration)
            match = re.fullmatch(r"((?:const )?(?:struct )?(\w+) (\*?))(\w+)(\[(\d+)\])?", declaration)
            if function:
                result, field, parameters = function.groups()
                kind, words[field] = ctypes.c_void_p, f"{one_line(result)} (*)({types(parameters)})"
            elif match:
                word, base, pointer, field, extent, count = match.groups()
                kind = ctypes.c_void_p if pointer else SCALARS.get(base) or self.structures[base]
                kind = kind * int(count) if count else kind
                words[field] = one_line(word) + (extent or "")
            else:
                raise Unreadable(f"{name}: {declaration}")
            fields.append((field, kind))
        self.structures[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
        self.fields[name] = words
