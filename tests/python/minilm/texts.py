"""Sentences that tokenisers get wrong, and all the characters there are."""

import sys
import unicodedata

# Each is a line of a file, so there is no line feed in any.
TRICKY = [
    "",
    " ",
    "\t \u00a0\u3000",
    "Hello, world!",
    "  spaces   around\tand\tbetween \r",
    "UPPER Lower mIxEd",
    "don't can't it's o'clock rock'n'roll",
    "e-mail, twenty-one, state-of-the-art -- and a dash \u2014 or two \u2013",
    "3.14159, 1,000,000 and 10^-5; 50% of $20 = \u20ac10?",
    "a+b=c, x<y>z, `code`, ~tilde~, |pipe|, \\back\\slash, under_score, #hash @at &and",
    "((nested [brackets] {braces}))",
    "...!!!???",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9 co\u00f6perate fa\u00e7ade se\u00f1or",
    "cafe\u0301 nai\u0308ve with combining marks",
    "\u00c5ngstr\u00f6m \u00d8rsted \u0141\u00f3d\u017a \u010cesk\u00fd T\u00fcrk\u00e7e \u0130stanbul \u0131\u015f\u0131k",
    "stra\u00dfe STRASSE \u1e9e Gro\u00df \u00e6on \u0153uvre \u00fe\u00e9r",
    "Ti\u1ebfng Vi\u1ec7t c\u00f3 nhi\u1ec1u d\u1ea5u",
    "\u039f\u03b4\u03c5\u03c3\u03c3\u03b5\u03cd\u03c2 \u039c\u0395\u0393\u0391\u03a3 \u1f00\u03c1\u03c7\u03ae; \u0386\u03b3\u03b9\u03bf\u03c2\u037e",
    "\u041c\u043e\u0441\u043a\u0432\u0430 \u0441\u0442\u043e\u043b\u0438\u0446\u0430 \u0439\u043e\u0434 \u0401\u043b\u043a\u0430",
    "\u4e2d\u6587\u5206\u8bcd\u6d4b\u8bd5",
    "mixed\u4e2d\u6587and English\u6587",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3067\u3059\u3002\u30ac\u30ae\u30b0",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4",
    "\uf900\ufa0e \u2f00 \U00020000\U0002a700 \U0002b820 \U0002f800",
    "\u0627\u0644\u0644\u063a\u0629 \u0627\u0644\u0639\u0631\u0628\u064a\u0651\u0629\u060c \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e\u0964 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
    "emoji \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f flags \U0001f1e9\U0001f1ea",
    "zero\u200bwidth soft\u00adhyphen bom\ufeff here \u202eright to left\u202c",
    "nul\x00inside bell\x07 escape\x1b delete\x7f next\x85line",
    "replacement \ufffd charac\ufffdter",
    "unassigned \u0378 and private \ue000 ab\ue000cd",
    "\u201ccurly\u201d \u2018quotes\u2019 \u00abguillemets\u00bb \u00bfqu\u00e9? \u00a1ol\u00e9!",
    "\u2260 \u2264 \u221e \u2211 \u2192 \u00b1 \u00d7 \u00f7 \u00ac \u00b0C \u00b5m m\u00b2 \u00bd \u2153",
    "fullwidth \uff21\uff22\uff43 \uff01\uff1f ligature \ufb01\ufb02 roman \u2167 circled \u2460",
    "\u2028line\u2029paragraph\u2009thin\u202fnarrow",
    "x" * 99,
    "y" * 100,
    "z" * 101,
    "\u00e9" * 100,
    "e\u0301" * 100 + " " + "e\u0301" * 101,
    "\u4e2d" * 120,
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "qzxvjk wqxz zzyzx \u2603\u2604 \ua9c5",
    "good\u2603bad",
    "https://example.com/a/b?c=d&e=%20#f user@example.org /usr/local/lib C:\\Windows",
    "if (x[i] != 0) { y += *p++; } // comment",
    "[CLS] in the [MASK] text[SEP]and [PAD][UNK] but not [cls] or [ MASK] or [MASK",
    "##ing ##s # # play##ing",
    "I.B.M. U.S.A. Ph.D. a.m.",
    "1st 2nd 3rd 4th 1990s 0x7fff v1.2.3-rc4",
    "s\u0323\u0307 \u1e69 \u212b \u2126 \u1fef \u037e \u0340",
    "Most sentences are plain, like this one, which is only here to be a little longer than the others.",
]
# As many tokens as there is room for, one less, one more; then far more, in words of several
# pieces.
TRICKY += [" ".join(["word"] * n) for n in (253, 254, 255)]
TRICKY += [" ".join(f"Unbelievably reconfigurable sentence {n}," for n in range(100))]


def alphabet():
    """Each character as a word's inside, many words a line. Unicode 3.2 is older than what any tokeniser knows;
    later characters (and those whose category has changed) are taken differently by its different versions."""
    old = unicodedata.ucd_3_2_0
    line = []
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        category = unicodedata.category(c)
        if c == "\n" or category in ("Cn", "Co", "Cs") or category != old.category(c):
            continue
        line.append(f"a{c}b")
        if len(line) == 50:
            yield " ".join(line)
            line = []
    yield " ".join(line)
