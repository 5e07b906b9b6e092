"""Reads the pickle of a NumPy object array of texts without unpickling: nothing in it is ever called or imported.

The pickle language can name any function and call it. Here its opcodes are read as data. An opcode is accepted only
where NumPy's own pickles of a one-dimensional array of `bytes` or `str` have it; everything else is refused by its
name and its place in the file. `pickle.Unpickler` with a `find_class` of one's own was rejected: it builds the whole
list in memory, and what it allocates on the way is up to the file.

Texts are handed on as they are met. What is kept is a few symbols, and 8 bytes a text: where each one stands, because
a pickle writes an object that comes twice only once and points back to it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from realm_hf.legacy.byte_window import ByteWindow, CutFileError
from realm_hf.legacy.pickle_language import (
    BYTES,
    CONSTANTS,
    GETS,
    GLOBALS,
    INTEGERS,
    MEMOS,
    OPCODE_NAMES,
    STRINGS,
    TUPLES,
    Symbol,
)

__all__ = ["MAX_TEXT_BYTES", "PickleRefusedError", "read_texts"]

MAX_TEXT_BYTES = 16 << 20
"""The largest text that is read; a passage of 288 wordpieces has about 1.5 kB."""

_TEXTS_A_BATCH, _BYTES_A_BATCH = 16_384, 16 << 20
_MOST_STACK = 24
_MOST_BETWEEN_TEXTS = 128  # opcodes; NumPy writes about 60 before the first
_LONGEST_NAME = 64
_FREE_REPEATS, _MOST_REPEATS = 64 << 20, 16  # bytes, and times the file's size: texts that are pointed back to

_NOTHING, _EMPTY_TEXT, _BYTES_CLASS, _ENCODE = range((1 << 64) - 4, 1 << 64)  # entries of the memo that are no place
_SYMBOL_PLACES = {Symbol.BYTES_CLASS: _BYTES_CLASS, Symbol.ENCODE: _ENCODE}


class PickleRefusedError(ValueError):
    """The file holds something that an array of texts does not need, or is cut. Nothing of it was executed."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A string, and how the memo remembers it: its opcode's position times two, plus one for encoded Latin-1."""

    content: bytes
    place: int


_PLACELESS = {_EMPTY_TEXT: _Text(b"", _EMPTY_TEXT), _BYTES_CLASS: Symbol.BYTES_CLASS, _ENCODE: Symbol.ENCODE}


def _place(value: object) -> int:
    """What the memo keeps of a value."""
    if isinstance(value, _Text):
        return value.place
    return _SYMBOL_PLACES.get(value, _NOTHING) if isinstance(value, Symbol) else _NOTHING


def read_texts(file: BinaryIO, count: int) -> Iterator[list[bytes]]:
    """
    The texts of a pickled array, in order and in batches of some thousand. `str` comes as UTF-8.

    What is wrong behind the last text is found only after that text was given out: if an error is raised, throw away
    what came before it.

    Args:
        file (`BinaryIO`): A regular file, at the first byte of the pickle.
        count (`int`): How many texts the array must have.

    Yields:
        `list[bytes]`: The next texts.

    Raises:
        PickleRefusedError: Names the opcode and its position, or what is missing.
    """
    try:
        yield from _Reader(file, count).batches()
    except CutFileError as error:
        raise PickleRefusedError(str(error)) from error


class _Reader:
    """The machine: a window of the file, a small stack, and the memo."""

    def __init__(self, file: BinaryIO, count: int):
        self.window, self.count = ByteWindow(file), count
        self.start = self.window.position
        self.opcode, self.position = 0, self.start  # those being executed
        self.stack: list[object] = []
        self.symbols: list[object] = []  # the memo up to the list
        self.places = array("Q")  # the memo from the list on
        self.list_at: int | None = None  # height of the stack above the list, while it is being filled
        self.seen_list = False
        self.may_memoise = False
        self.since_text = self.found = self.repeated = 0
        self.out: list[bytes] = []
        self.out_bytes = 0

    def batches(self) -> Iterator[list[bytes]]:
        done = False
        while not done:
            if len(self.stack) - 1 == self.list_at and self.stack[-1] is Symbol.MARK:
                self._run_of_bytes()
            done = self._step()
            if len(self.out) >= _TEXTS_A_BATCH or self.out_bytes >= _BYTES_A_BATCH:
                yield self.out
                self.out, self.out_bytes = [], 0
        if self.found != self.count:
            raise PickleRefusedError(f"the list holds {self.found} texts where the header says {self.count}")
        if self.out:
            yield self.out

    def _run_of_bytes(self) -> None:
        """The fast way for most of a file: `bytes`, each with its memo opcode, as far as the window goes."""
        window = self.window
        window.fill(32)
        buffer, at = window.buffer, window.at
        base = window.position - at
        safe, room = len(buffer) - 8, min(_TEXTS_A_BATCH - len(self.out), self.count - self.found)
        first_id = len(self.symbols) + len(self.places)
        texts: list[bytes] = []
        places: list[int] = []
        while len(texts) < room and at < safe:
            opcode = buffer[at]
            if opcode == 0x43:  # SHORT_BINBYTES
                start = at + 2
                end = start + buffer[at + 1]
            elif opcode == 0x42:  # BINBYTES
                start = at + 5
                end = start + int.from_bytes(buffer[at + 1 : start], "little")
            else:
                break
            if end >= safe:
                break
            memo = buffer[end]
            if memo == 0x94:  # MEMOIZE
                after = end + 1
            elif memo == 0x72:  # LONG_BINPUT
                after = end + 5
                if int.from_bytes(buffer[end + 1 : after], "little") != first_id + len(texts):
                    break
            else:
                break
            texts.append(buffer[start:end])
            places.append((base + at) << 1)
            at = after
        self.out_bytes += at - window.at
        window.at = at
        self.found += len(texts)
        self.since_text = 0 if texts else self.since_text
        self.out += texts
        self.places.extend(places)

    def _step(self) -> bool:
        """One opcode by the full rules; True at the end."""
        self.position = self.window.position
        self.opcode = self.window.take(1)[0]
        self.since_text += 1
        if self.since_text > _MOST_BETWEEN_TEXTS:  # nothing that is nested without end, or repeats itself for ever
            self._refuse("NumPy writes fewer opcodes where there is no text")
        if self.opcode in MEMOS:
            self._memoise()
            return False
        if self.opcode == 0x95:  # FRAME, for readers that fetch ahead; it may stand before a large text's memo opcode
            self.window.take(8)
            return False
        self._give_out_top()
        done = self._execute()
        self.may_memoise = True
        if len(self.stack) > _MOST_STACK:
            self._refuse("the stack is deeper than an array of texts needs")
        return done

    def _execute(self) -> bool:
        opcode, stack = self.opcode, self.stack
        if opcode in BYTES:
            stack.append(self._text(BYTES[opcode]))
        elif opcode in STRINGS:
            stack.append(self._text(STRINGS[opcode]))
        elif opcode in GETS:
            stack.append(self._recall(int.from_bytes(self.window.take(GETS[opcode]), "little")))
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in INTEGERS:
            width = INTEGERS[opcode]
            stack.append(int.from_bytes(self.window.take(width), "little", signed=width == 4))
        elif opcode in TUPLES:
            self._make_tuple(len(stack) - TUPLES[opcode])
        elif opcode == ord("("):
            if self.list_at is not None and len(stack) != self.list_at:
                self._refuse("a mark stands only at the beginning of a run of texts")
            stack.append(Symbol.MARK)
        elif opcode == ord("t"):
            marks = [place for place, value in enumerate(stack) if value is Symbol.MARK]
            self._make_tuple(marks[-1] + 1 if marks else -1)
            del stack[-2]
        elif opcode == ord("c"):
            self._name(self._line(), self._line())
        elif opcode == 0x93:  # STACK_GLOBAL
            name, module = self._pop_text(), self._pop_text()
            self._name(module.content, name.content)
        elif opcode == ord("R"):
            self._reduce()
        elif opcode == ord("b"):
            self._build()
        elif opcode == ord("]"):
            if self.seen_list:
                self._refuse("the array has one list")
            stack.append(Symbol.LIST)
            self.list_at, self.seen_list = len(stack), True
        elif opcode == ord("e") and self.list_at is not None and stack[self.list_at :] == [Symbol.MARK]:
            self._pop()
        elif opcode == ord("a") and self.list_at is not None and len(stack) - 1 == self.list_at:
            self._give_out(self._pop_text())
        elif opcode == 0x80 and self.position == self.start:
            if self.window.take(1)[0] > 5:
                self._refuse("the protocol is newer than 5")
        elif opcode == ord(".") and stack == [Symbol.FILLED_ARRAY]:
            return True
        else:
            self._refuse("an array of texts has no such opcode here")
        return False

    def _name(self, module: bytes, name: bytes) -> None:
        symbol = GLOBALS.get((module, name))
        if symbol is None:
            self._refuse(f"it names {module.decode('latin1')}.{name.decode('latin1')}, which no array of texts needs")
        self.stack.append(symbol)

    def _reduce(self) -> None:
        function, arguments, plain = self._pop_call()
        if function is Symbol.RECONSTRUCT and plain == (Symbol.NDARRAY, (0,), b"b"):
            self.stack.append(Symbol.ARRAY)
        elif function is Symbol.DTYPE_CLASS and plain == (b"O8", False, True):
            self.stack.append(Symbol.DTYPE)
        elif function is Symbol.ENCODE and len(plain) == 2 and plain[1] == b"latin1" and isinstance(plain[0], bytes):
            self.stack.append(_Text(self._encoded(plain[0]), arguments[0].place | 1))
        elif function is Symbol.BYTES_CLASS and plain == ():
            self.stack.append(_PLACELESS[_EMPTY_TEXT])
        else:
            self._refuse(f"a call of {function.name} with {plain!r:.80} is none that an array of texts needs")

    def _build(self) -> None:
        target, _, plain = self._pop_call()
        if target is Symbol.DTYPE and plain[:7] == (3, b"|", None, None, None, -1, -1) and len(plain) == 8:
            self.stack.append(target)
        elif target is Symbol.ARRAY and plain in [
            (1, (self.count,), Symbol.DTYPE, in_fortran_order, Symbol.LIST) for in_fortran_order in (False, True)
        ]:
            self.stack.append(Symbol.FILLED_ARRAY)
        else:
            self._refuse(f"{target.name} has the state {plain!r:.120}, for a list of {self.count} texts")

    def _make_tuple(self, start: int) -> None:
        if start < 0:
            self._refuse("the stack holds too little")
        values = tuple(self.stack[start:])
        if Symbol.LIST in values:
            self.list_at = None
        del self.stack[start:]
        self.stack.append(values)

    def _text(self, width: int) -> _Text:
        length = int.from_bytes(self.window.take(width), "little")
        most = MAX_TEXT_BYTES if self.seen_list else _LONGEST_NAME
        if length > most:
            self._refuse(f"a text of {length} bytes is longer than the {most} that are read here")
        return _Text(self.window.take(length), self.position << 1)

    def _give_out_top(self) -> None:
        """A text right above the list's mark is complete: only a memo opcode may still look at it."""
        if self.list_at is None or len(self.stack) != self.list_at + 2:
            return
        mark, text = self.stack[-2:]
        if mark is Symbol.MARK and isinstance(text, _Text):
            self._give_out(self._pop_text())

    def _give_out(self, text: _Text) -> None:
        if self.found == self.count:
            self._refuse(f"the list holds more texts than the {self.count} of the header")
        self.found += 1
        self.since_text = 0
        self.out.append(text.content)
        self.out_bytes += len(text.content)

    def _memoise(self) -> None:
        number = len(self.symbols) + len(self.places)
        width = MEMOS[self.opcode]
        if width and int.from_bytes(self.window.take(width), "little") != number:
            self._refuse(f"the memo is numbered in order, and {number} is next")
        if not (self.may_memoise and self.stack) or number > 3 * self.count + _MOST_BETWEEN_TEXTS:
            self._refuse("there is nothing new to remember")
        self.may_memoise = False
        if not self.seen_list:
            self.symbols.append(self.stack[-1])
        else:
            self.places.append(_place(self.stack[-1]))
            self._give_out_top()

    def _recall(self, number: int) -> object:
        if number < len(self.symbols):
            value = self.symbols[number]
            if isinstance(value, tuple):  # doubled forty times, it could not be printed
                self._refuse("it points back to a tuple, which an array of texts does not need")
            return value
        number -= len(self.symbols)
        place = self.places[number] if number < len(self.places) else _NOTHING
        if place == _NOTHING:
            self._refuse("it points back to something that is no text")
        if place in _PLACELESS:
            return _PLACELESS[place]
        head = self.window.peek(place >> 1, 9)
        width = (BYTES | STRINGS)[head[0]]
        length = int.from_bytes(head[1 : 1 + width], "little")
        self.repeated += length
        if self.repeated > _FREE_REPEATS + _MOST_REPEATS * self.window.size:
            self._refuse(
                f"texts that are pointed back to have {self.repeated} bytes, for a file of {self.window.size}"
            )
        content = self.window.peek((place >> 1) + 1 + width, length)
        return _Text(self._encoded(content) if place & 1 else content, place)

    def _encoded(self, text: bytes) -> bytes:
        try:
            return text.decode().encode("latin1")
        except UnicodeError:
            self._refuse("its text is no Latin-1")

    def _pop(self) -> object:
        if not self.stack:
            self._refuse("the stack is empty")
        return self.stack.pop()

    def _pop_text(self) -> _Text:
        value = self._pop()
        if not isinstance(value, _Text):
            self._refuse("there is no text on the stack")
        return value

    def _pop_call(self) -> tuple[Symbol, tuple[Any, ...], tuple[Any, ...]]:
        """What is called or built, its arguments or state, and these with texts as plain bytes."""
        values, target = self._pop(), self._pop()
        if not (isinstance(values, tuple) and isinstance(target, Symbol)):
            self._refuse("an array of texts calls and builds nothing like that")
        return target, values, tuple(value.content if isinstance(value, _Text) else value for value in values)

    def _line(self) -> bytes:
        line = self.window.line(_LONGEST_NAME)
        if line is None:
            self._refuse("its name is too long or cut")
        return line

    def _refuse(self, why: str) -> NoReturn:
        name = OPCODE_NAMES.get(self.opcode, f"0x{self.opcode:02x}")
        raise PickleRefusedError(f"opcode {name} at byte {self.position}: {why}")
