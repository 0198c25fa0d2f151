#!/usr/bin/env python3
"""Changes to the header that scripts/check_abi.py must notice: all of them. Those that break programs must not get
into the table of the binary interface before the version is another."""

import contextlib
import io
import re
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))
import check_abi  # noqa: E402

HEADER = (ROOT / "include" / "flash_attention.h").read_text()
TABLE = (ROOT / "c_tests" / "abi.txt").read_text()
VERSION, SONAME = re.search(r"^version (\d+) (\S+)$", TABLE, re.MULTILINE).groups()

BREAKS = {
    "a function is removed": (r"uint32_t fa_version\(void\);", ""),
    "a parameter has another type": (r"(fa_pool_create\()int32_t", r"\1int64_t"),
    "a parameter more": (r"fa_isa\(void\)", "fa_isa(int32_t which)"),
    "a result has another type": (r"const char \*(fa_status_string)", r"char *\1"),
    "the type of a callback": (r"(fa_task\)\(void \*arg, )size_t", r"\1int32_t"),
    "a constant has another value": (r"FA_ERR_PAGE = \d+", "FA_ERR_PAGE = 99"),
    "a constant is removed": (r"FA_ERR_PAGE = \d+,", ""),
    "a flag has another value": (r"(#define FA_PRECISE) \d+", r"\1 4"),
    "a field has another type of that size": (r"float scale;", "int32_t scale;"),
    "a field is a pointer to another type": (r"const int32_t \*kv_lens;", "const int64_t *kv_lens;"),
    "a field has another size": (r"int32_t group_dims;", "int64_t group_dims;"),
    "a field has another name": (r"float softcap;", "float cap;"),
    "fields change places": (r"(int64_t window_left;)(.*?)(int64_t window_right;)", r"\3\2\1"),
    "a reserved field becomes one of another type": (r"uint32_t reserved0;", "int32_t more;"),
    "a field is removed": (r"int64_t block_kv;", ""),
    "a field in front": (r"(typedef struct fa_attention \{)", r"\1 int64_t more;"),
    "a structure without a size grows": (r"(uint32_t reserved;)(\s*\} fa_config;)", r"\1 int64_t more;\2"),
    "a field in what was padding": (r"(bool causal;)", r"\1 bool more;"),
    "a pool's function has another type": (r"(int32_t \(\*width\)\()void \*ctx\)", r"\1void)"),
}
ADDITIONS = {
    "a function": (r"(uint32_t fa_version\(void\);)", r"\1 uint32_t fa_more(const float *x, size_t n);"),
    "a status": (r"(FA_ERR_PAGE = \d+,)", r"\1 FA_ERR_MORE = 99,"),
    "a flag": (r"(#define FA_PRECISE \d+)", r"\1\n#define FA_MORE 4"),
    "a field at the end": (r"(;)(\s*\} fa_attention;)", r"\1 int64_t more;\2"),
    "a meaning for a reserved field": (r"uint32_t reserved0;", "uint32_t more;"),
    "a structure": (r"(typedef struct fa_pool \{)", r"typedef struct fa_more { int64_t n; } fa_more; \1"),
}


class Changes(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.header, self.table = Path(folder.name) / "header.h", Path(folder.name) / "abi.txt"

    def run_with(self, header, *options, soname=SONAME):
        """Exit code and what is printed."""
        self.header.write_text(header)
        arguments = ["check_abi.py", "--soname", soname, *options, str(self.header), str(self.table)]
        with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(io.StringIO()) as printed:
            return check_abi.main(), printed.getvalue()

    def changed(self, change):
        pattern, replacement = change
        header, count = re.subn(pattern, replacement, HEADER, flags=re.DOTALL)
        self.assertEqual(count, 1)
        self.table.write_text(TABLE)
        code, printed = self.run_with(header)
        self.assertEqual(code, 1)
        self.assertIn("docs/abi.md", printed)
        return header

    def test_nothing(self):
        self.table.write_text(TABLE)
        self.assertEqual(self.run_with(HEADER)[0], 0)
        self.assertEqual(self.run_with(HEADER, "--write")[0], 0)
        self.assertEqual(self.table.read_text(), TABLE)

    def test_breaks(self):
        for name, change in BREAKS.items():
            with self.subTest(name):
                header = self.changed(change)
                higher = re.sub(r"(#define FA_ABI_VERSION) \d+", rf"\1 {int(VERSION) + 1}", header)
                for text, soname in (header, SONAME), (header, "other.so"), (higher, SONAME):
                    code, printed = self.run_with(text, "--write", soname=soname)
                    self.assertEqual(code, 1)
                    self.assertIn("breaks programs", printed)
                    self.assertEqual(self.table.read_text(), TABLE)
                self.assertEqual(self.run_with(higher, "--write", soname="other.so")[0], 0)
                self.assertEqual(self.run_with(higher, soname="other.so")[0], 0)

    def test_additions(self):
        for name, change in ADDITIONS.items():
            with self.subTest(name):
                header = self.changed(change)
                self.assertEqual(self.run_with(header, "--write")[0], 0)
                self.assertEqual(self.run_with(header)[0], 0)
                self.assertIn(f"version {VERSION} {SONAME}\n", self.table.read_text())

    def test_another_soname_or_number_alone_is_noticed(self):
        self.table.write_text(TABLE)
        self.assertEqual(self.run_with(HEADER, soname="other.so")[0], 1)
        higher = re.sub(r"(#define FA_ABI_VERSION) \d+", rf"\1 {int(VERSION) + 1}", HEADER)
        self.assertEqual(self.run_with(higher)[0], 1)


if __name__ == "__main__":
    unittest.main()
