"""A loader of ELF relocatable objects for x86-64 and AArch64: lays out sections, links and protects them.

Objects come from a file that may be corrupt, so every number read is checked before it is used.

Sources: System V ABI, AMD64 supplement, section 4.4; ELF for the Arm 64-bit Architecture, section 5.7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coresident.errors import ArtifactError
from coresident.runtime.memory import PAGE, CodeMemory, Protection, round_up

_MACHINES = {62: "x86_64", 183: "aarch64"}
_PROGBITS, _SYMTAB, _RELA, _NOBITS, _REL = 1, 2, 4, 8, 9
_WRITE, _ALLOC, _EXECUTE, _TLS = 1, 2, 4, 0x400
_UNDEFINED, _FIRST_RESERVED, _ABSOLUTE = 0, 0xFF00, 0xFFF1
_LOCAL, _GLOBAL = 0, 1
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_LIMIT = 1 << 30
"""More code than this can't be reached by PC-relative addresses with room to spare."""


class _Section(NamedTuple):
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int

    @property
    def loaded(self) -> bool:
        """Whether it takes part in the image; unwind tables do not, since kernels never unwind."""
        return bool(self.flags & _ALLOC) and self.size > 0 and not self.name.startswith(".eh_frame")


class _Symbol(NamedTuple):
    name: str
    binding: int
    section: int
    value: int


class _Object(NamedTuple):
    machine: str
    data: bytes | memoryview
    sections: tuple[_Section, ...]
    symbols: tuple[_Symbol, ...]


def _text(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if not 0 <= offset < len(table) or end < 0:
        raise ArtifactError("an object's name lies outside its table of strings")
    return table[offset:end].decode("ascii", "replace")


def _parse(data: bytes | memoryview) -> _Object:
    """Sections and symbols of one object."""
    if len(data) < 64 or bytes(data[:6]) != b"\x7fELF\x02\x01":
        raise ArtifactError("not a 64-bit little-endian ELF object")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 1 or machine not in _MACHINES:
        raise ArtifactError(
            f"an ELF file of type {kind} for machine {machine}; a relocatable object is needed"
        )
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names_at = struct.unpack_from("<HHH", data, 58)
    if (
        size != _SECTION.size
        or not 0 < count < _FIRST_RESERVED
        or table + size * count > len(data)
        or names_at >= count
    ):
        raise ArtifactError("an object's table of sections lies outside it")
    headers = [_SECTION.unpack_from(data, table + size * i) for i in range(count)]
    for _, header_kind, _, _, offset, length, _, _, align, _ in headers:
        if header_kind not in (0, _NOBITS) and offset + length > len(data):
            raise ArtifactError("a section lies outside its object")
        if length > _LIMIT or align > PAGE or align & (align - 1):
            raise ArtifactError("a section's size or alignment is out of bounds")

    def contents(index: int) -> bytes:
        if not 0 <= index < count or headers[index][1] in (0, _NOBITS):
            raise ArtifactError("a section refers to one that the object does not have")
        return bytes(data[headers[index][4] : headers[index][4] + headers[index][5]])

    names = contents(names_at)
    sections = tuple(
        _Section(_text(names, name), kind, flags, offset, length, link, info, max(align, 1), entry)
        for name, kind, flags, _, offset, length, link, info, align, entry in headers
    )
    symbols: list[_Symbol] = []
    tables = [i for i, section in enumerate(sections) if section.kind == _SYMTAB]
    if len(tables) > 1:
        raise ArtifactError("an object with more than one table of symbols")
    for index in tables:
        raw = contents(index)
        if len(raw) % _SYMBOL.size:
            raise ArtifactError("an object's table of symbols is cut")
        strings = contents(sections[index].link)
        for name, info, _, section, value, _ in _SYMBOL.iter_unpack(raw):
            symbols.append(_Symbol(_text(strings, name), info >> 4, section, value))
    return _Object(_MACHINES[machine], data, sections, tuple(symbols))


class LoadedCode:
    """Objects in executable memory, which stays while this does.

    Args:
        memory: the pages.
        symbols: addresses of the global symbols.
    """

    def __init__(self, memory: CodeMemory, symbols: dict[str, int]) -> None:
        self._memory, self._symbols = memory, symbols

    def __contains__(self, name: str) -> bool:
        return name in self._symbols

    def address(self, name: str) -> int:
        """The address of a global symbol.

        Raises:
            ArtifactError: no object defines it.
        """
        try:
            return self._symbols[name]
        except KeyError:
            raise ArtifactError(f"the compiled code has no symbol {name!r}") from None


def load(objects: Sequence[bytes | memoryview], machine: str) -> LoadedCode:
    """Link objects with each other and make them executable.

    Args:
        objects: ELF relocatable objects, position independent, small code model; local symbols may repeat.
        machine: "x86_64" or "aarch64", which all of them must be for.

    Raises:
        ArtifactError: an object is corrupt, for another machine, has writable data or undefined symbols.
        ResourceError: the system refuses executable memory.
    """
    unplaced = Unplaced(objects, machine)
    memory = CodeMemory(unplaced.size)
    image, symbols = unplaced.at(memory.address)
    code_end = round_up(unplaced.code_size, PAGE)
    parts: list[tuple[int, int, Protection]] = [
        (0, unplaced.code_size, "code"),
        (code_end, unplaced.size - code_end, "constants"),
    ]
    memory.commit(image, parts)
    return LoadedCode(memory, symbols)


class Unplaced:
    """Objects that are checked and lie in order, to be linked wherever they go.

    Args:
        objects, machine: as `load` takes them.

    Attributes:
        size: bytes in all: code, then constants on pages of their own.
        code_size: bytes of code.

    Raises:
        ArtifactError: as `load` does.
    """

    def __init__(self, objects: Sequence[bytes | memoryview], machine: str) -> None:
        self._parsed = [_parse(data) for data in objects]
        for one in self._parsed:
            if one.machine != machine:
                raise ArtifactError(f"code for {one.machine} on a machine that runs {machine}")
        self._places, self.code_size, self.size = _layout(self._parsed)

    def at(self, base: int) -> tuple[bytearray, dict[str, int]]:
        """The image that belongs at an address, a multiple of PAGE, and the addresses of the global symbols.

        Raises:
            ArtifactError: as `load` does.
        """
        image = bytearray(self.size)
        for (o, s), place in self._places.items():
            section = self._parsed[o].sections[s]
            if section.kind != _NOBITS:
                image[place : place + section.size] = self._parsed[o].data[
                    section.offset : section.offset + section.size
                ]
        linker = _Linker(self._parsed, self._places, image, base)
        linker.relocate()
        return image, linker.globals


def _layout(parsed: Sequence[_Object]) -> tuple[dict[tuple[int, int], int], int, int]:
    """Where each section goes: code first, constants on pages of their own after it.

    Returns:
        Offset by (object, section); bytes of code; bytes in all.
    """
    code: list[tuple[int, int]] = []
    constants: list[tuple[int, int]] = []
    for o, one in enumerate(parsed):
        for s, section in enumerate(one.sections):
            if not section.loaded:
                continue
            if section.kind == _NOBITS or section.flags & _TLS:
                raise ArtifactError(f"kernels have no state, but an object has section {section.name}")
            # Constants that hold addresses are writable only for a dynamic linker's sake.
            if section.flags & _WRITE and not section.name.startswith(".data.rel.ro"):
                raise ArtifactError(f"kernels have no state, but an object has section {section.name}")
            (code if section.flags & _EXECUTE else constants).append((o, s))
    places: dict[tuple[int, int], int] = {}
    position = 0
    for part in (code, constants):
        position = round_up(position, PAGE)
        for o, s in part:
            section = parsed[o].sections[s]
            position = round_up(position, section.align)
            places[o, s] = position
            position += section.size
            if position > _LIMIT:
                raise ArtifactError("more code than can be addressed")
        if part is code:
            code_size = position
    return places, code_size, position


class _Linker:
    """Applies the relocations of all objects to an image that will lie at `base`."""

    def __init__(
        self, parsed: Sequence[_Object], places: dict[tuple[int, int], int], image: bytearray, base: int
    ) -> None:
        self.parsed, self.places, self.image, self.base = parsed, places, image, base
        self.globals: dict[str, int] = {}
        for o, one in enumerate(parsed):
            for symbol in one.symbols:
                if symbol.binding == _LOCAL or symbol.section == _UNDEFINED:
                    continue
                if symbol.name in self.globals:
                    raise ArtifactError(f"two objects define the symbol {symbol.name!r}")
                self.globals[symbol.name] = self._defined(o, symbol)

    def _defined(self, o: int, symbol: _Symbol) -> int:
        section = symbol.section
        if section == _ABSOLUTE or section >= len(self.parsed[o].sections) or (o, section) not in self.places:
            raise ArtifactError(f"the symbol {symbol.name!r} does not lie in code or constants")
        if symbol.value > self.parsed[o].sections[section].size:
            raise ArtifactError(f"the symbol {symbol.name!r} lies outside its section")
        return self.base + self.places[o, section] + symbol.value

    def _resolved(self, o: int, index: int) -> int:
        symbols = self.parsed[o].symbols
        if not 0 < index < len(symbols):
            raise ArtifactError("a relocation refers to a symbol that the object does not have")
        symbol = symbols[index]
        if symbol.section != _UNDEFINED:
            return self._defined(o, symbol)
        if symbol.name not in self.globals:
            raise ArtifactError(f"the compiled code needs the symbol {symbol.name!r}, which nothing defines")
        return self.globals[symbol.name]

    def relocate(self) -> None:
        for o, one in enumerate(self.parsed):
            apply = _APPLY[one.machine]
            for section in one.sections:
                target = (o, section.info)
                if section.kind not in (_RELA, _REL) or target not in self.places:
                    continue
                if section.kind == _REL or section.size % _RELOCATION.size:
                    raise ArtifactError("an object's relocations are of a form that is not supported")
                start, length = self.places[target], one.sections[section.info].size
                raw = bytes(one.data[section.offset : section.offset + section.size])
                for offset, info, addend in _RELOCATION.iter_unpack(raw):
                    width = _WIDTHS[one.machine].get(info & 0xFFFFFFFF)
                    if width is None:
                        raise ArtifactError(
                            f"relocation type {info & 0xFFFFFFFF} of {one.machine} is not supported"
                        )
                    if offset + width > length:
                        raise ArtifactError("a relocation lies outside its section")
                    place = start + offset
                    address = (self._resolved(o, info >> 32) + addend) & _MASK
                    apply(self.image, place, info & 0xFFFFFFFF, address, self.base + place)


_MASK = (1 << 64) - 1


def _signed(value: int, bits: int) -> int:
    """The value as a signed number of so many bits (of 64), or ArtifactError if it does not fit."""
    value = (value + (1 << 63) & _MASK) - (1 << 63)
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ArtifactError("an address is out of a relocation's reach")
    return value


# R_X86_64_: 64, PC32, PLT32, 32, 32S, PC64
_X86_WIDTHS = {1: 8, 2: 4, 4: 4, 10: 4, 11: 4, 24: 8}


def _apply_x86_64(image: bytearray, at: int, kind: int, address: int, place: int) -> None:
    match kind:
        case 1:
            struct.pack_into("<Q", image, at, address)
        case 2 | 4:
            struct.pack_into("<i", image, at, _signed(address - place, 32))
        case 24:
            struct.pack_into("<q", image, at, _signed(address - place, 64))
        case 10:
            if address >> 32:
                raise ArtifactError("an address is out of a relocation's reach")
            struct.pack_into("<I", image, at, address)
        case 11:
            struct.pack_into("<i", image, at, _signed(address, 32))


# R_AARCH64_: ABS64, ABS32, PREL64, PREL32, PREL16, ADR_PREL_LO21, ADR_PREL_PG_HI21, ADR_PREL_PG_HI21_NC,
# ADD_ABS_LO12_NC, LDST8/16/32/64/128_ABS_LO12_NC, TSTBR14, CONDBR19, JUMP26, CALL26
_LDST_SCALES = {278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
_AARCH64_WIDTHS = {257: 8, 258: 4, 260: 8, 261: 4, 262: 2} | dict.fromkeys(
    (274, 275, 276, 277, 279, 280, 282, 283, *_LDST_SCALES), 4
)


def _apply_aarch64(image: bytearray, at: int, kind: int, address: int, place: int) -> None:
    match kind:
        case 257:
            struct.pack_into("<Q", image, at, address)
            return
        case 258:
            if address >> 32:
                raise ArtifactError("an address is out of a relocation's reach")
            struct.pack_into("<I", image, at, address)
            return
        case 260 | 261 | 262:
            width = {260: 64, 261: 32, 262: 16}[kind]
            struct.pack_into(
                {64: "<q", 32: "<i", 16: "<h"}[width], image, at, _signed(address - place, width)
            )
            return
    (word,) = struct.unpack_from("<I", image, at)
    if kind in (274, 275, 276):
        distance = address - place if kind == 274 else (address >> 12 << 12) - (place >> 12 << 12)
        value = _signed(distance, 21) if kind == 274 else _signed(distance, 33) >> 12
        word = word & ~(3 << 29 | 0x7FFFF << 5) | (value & 3) << 29 | (value >> 2 & 0x7FFFF) << 5
    elif kind == 277:
        word = word & ~(0xFFF << 10) | (address & 0xFFF) << 10
    elif kind in _LDST_SCALES:
        scale = _LDST_SCALES[kind]
        if address & (1 << scale) - 1:
            raise ArtifactError("a constant is not aligned as its load needs")
        word = word & ~(0xFFF << 10) | (address & 0xFFF) >> scale << 10
    else:
        bits, shift = {279: (14, 5), 280: (19, 5), 282: (26, 0), 283: (26, 0)}[kind]
        distance = _signed(address - place, bits + 2)
        if distance & 3:
            raise ArtifactError("a branch to an address that is not aligned")
        mask = (1 << bits) - 1
        word = word & ~(mask << shift) | (distance >> 2 & mask) << shift
    struct.pack_into("<I", image, at, word)


_WIDTHS = {"x86_64": _X86_WIDTHS, "aarch64": _AARCH64_WIDTHS}
_APPLY: dict[str, Callable[[bytearray, int, int, int, int], None]] = {
    "x86_64": _apply_x86_64,
    "aarch64": _apply_aarch64,
}
