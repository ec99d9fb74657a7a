"""A machine that follows the instructions of a pickle without ever running what the pickle names.

A pickle is a program for a small stack machine. Python's own machine lets it call what ``find_class`` hands
out, set attributes through BUILD, and reserve any amount of memory for its memo. This one follows the
instructions itself (``pickletools.genops`` takes them apart, and executes nothing). It makes None, numbers,
strings, bytes, tuples, lists, dicts and sets, and whatever the functions of an allow-list build from these.
Other globals are refused, but reading goes on, so that all refused names can be reported together.
"""

import io
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stylegan2.errors import StyleGAN2Error

# Limits; real files of networks stay orders of magnitude below
_MAX_INSTRUCTIONS = 1_000_000
_MAX_INTEGER_BITS = 128
_MAX_KEY_BITS = 10
_MAX_ARGUMENTS = 8
_MAX_REFUSED = 50
_MAX_NAME = 100

Arguments: TypeAlias = tuple[Any, ...]
Builder: TypeAlias = Callable[[Arguments], Any]


@dataclass(frozen=True, eq=False)
class Global:
    """A name of the allow-list, on the stack."""

    name: str


@dataclass(frozen=True, eq=False)
class Refused:
    """Stands where a refused global, or something built from one, was."""


@dataclass
class Reading:
    """What the machines share that read the pickles of one file.

    Attributes:
        refused: names of refused globals.
        instructions: number of those that were followed.
    """

    refused: list[str] = field(default_factory=list)
    instructions: int = 0


class Settable(ABC):
    """What the instruction BUILD may change: everything else refuses it."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Takes over a state, which may be anything; raises ``StyleGAN2Error`` for an unusable one."""


def damaged(what: str) -> StyleGAN2Error:
    """The error for a pickle that makes no sense."""
    return StyleGAN2Error(f"damaged pickle ({what}); fetch the file again from its source")


def forbidden(what: str) -> StyleGAN2Error:
    """The error for a pickle that does what pickles of networks do not."""
    return StyleGAN2Error(
        f"{what}, as no file of StyleGAN2-ADA does: it is damaged or made to do harm; fetch it again from "
        "its source, and open it with nothing else unless you trust it"
    )


def checked_key(value: Any) -> Any:
    """Returns a value for a set or the key of a dict.

    Nested values could take for ever to hash. Python's hashes of numbers are known beforehand, so that a
    table of chosen numbers could take the square of their count: small ones are too few for that.

    Raises:
        StyleGAN2Error: It is not None, text, bytes or a small whole number.
    """
    if isinstance(value, int):
        if value.bit_length() > _MAX_KEY_BITS:
            raise damaged(f"an integer of {value.bit_length()} bits as key")
    elif value is not None and not isinstance(value, str | bytes):
        raise damaged(f"a {type(value).__name__} as key")
    return value


class Machine:
    """Follows the instructions of one pickle.

    Args:
        allowed: Globals that may be named, with what a call of them builds; None may not be called. The
            functions get arguments of any kind and number, and raise ``StyleGAN2Error`` for unusable ones.
        dict_classes: Those of them that are classes of dicts: NEWOBJ makes an ordinary dict.
        persistent: What a persistent id stands for; None refuses them.
        reading: Of the file; refused globals and instructions are counted there.
    """

    def __init__(
        self,
        allowed: Mapping[str, Builder | None],
        dict_classes: frozenset[str],
        persistent: Callable[[Any], Any] | None,
        reading: Reading,
    ) -> None:
        self.allowed = allowed
        self.dict_classes = dict_classes
        self.persistent = persistent
        self.reading = reading
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        """Runs up to STOP and leaves the file just behind it."""
        for opcode, argument, _ in pickletools.genops(file):
            self.reading.instructions += 1
            if self.reading.instructions > _MAX_INSTRUCTIONS:
                raise forbidden(f"the pickle has more than {_MAX_INSTRUCTIONS} instructions")
            if opcode.name in _CONSTANTS:
                self.stack.append(_checked_constant(argument))
                continue
            instruction = _INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                raise forbidden(f"the pickle uses the instruction {opcode.name}")
            instruction(self, argument)
        if self.below or len(self.stack) != 1:
            raise damaged("values are left over at its end")
        return self.stack[0]

    def pop(self, count: int) -> list[Any]:
        """Takes the uppermost values, the lowest first."""
        if len(self.stack) < count:
            raise damaged("a value is missing")
        values, self.stack[-count:] = self.stack[-count:], []
        return values

    def top(self) -> Any:
        """The uppermost value, which stays."""
        if not self.stack:
            raise damaged("a value is missing")
        return self.stack[-1]

    def mark(self, _: Any) -> None:
        """Starts a new stack above this one."""
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        """Takes all values above the last mark, and the mark."""
        if not self.below:
            raise damaged("a mark is missing")
        values, self.stack = self.stack, self.below.pop()
        return values

    def push_tuple(self, values: list[Any]) -> None:
        """Adds a tuple of the values."""
        self.stack.append(tuple(values))

    def remember(self, index: int) -> None:
        """Gives the uppermost value a number."""
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        """Adds the value of this number once more."""
        if index not in self.memo:
            raise damaged(f"no object of number {index} to refer to")
        self.stack.append(self.memo[index])

    def extend(self, values: list[Any]) -> None:
        """Adds values to the list or set on top of the stack."""
        target = self.top()
        if type(target) is list:
            target.extend(values)
        elif type(target) is set:
            target.update(map(checked_key, values))
        elif not isinstance(target, Refused):
            raise damaged(f"cannot append to a {type(target).__name__}")

    def set_items(self, values: list[Any]) -> None:
        """Sets items, alternately key and value, of the dict on top of the stack."""
        target = self.top()
        if isinstance(target, Refused):
            return
        if type(target) is not dict or len(values) % 2:
            raise damaged(f"cannot set items of a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[checked_key(key)] = value

    def push_global(self, names: list[Any]) -> None:
        """Adds the global of this module and name, or a stand-in for a refused one."""
        module, name = names
        if not isinstance(module, str) or not isinstance(name, str):
            raise damaged("a global whose name is not text")
        # Cut first: an instruction of a few bytes may name texts of any length.
        full = f"{module[: _MAX_NAME + 1]}.{name[: _MAX_NAME + 1]}"
        if full in self.allowed:  # all of them are shorter than what is cut
            self.stack.append(Global(full))
            return
        shown = full if len(full) <= _MAX_NAME else full[:_MAX_NAME] + "…"
        refused = self.reading.refused
        if shown not in refused:
            refused.append(shown)
        if len(refused) > _MAX_REFUSED:
            raise forbidden("the pickle names a great many globals")
        self.stack.append(Refused())

    def call(self, _: Any) -> None:
        """REDUCE: only what the allow-list builds, and that checks its arguments."""
        function, arguments = self.pop(2)
        if isinstance(function, Refused):
            self.stack.append(function)
            return
        build = self.allowed.get(function.name) if isinstance(function, Global) else None
        if build is None or type(arguments) is not tuple:
            what = function.name if isinstance(function, Global) else f"a {type(function).__name__}"
            raise forbidden(f"the pickle calls {what}")
        if len(arguments) > _MAX_ARGUMENTS:
            raise damaged(f"a call with {len(arguments)} arguments")
        # A refused part makes the whole unusable, but reading goes on to find the other refused names.
        refused = next((argument for argument in arguments if isinstance(argument, Refused)), None)
        self.stack.append(build(arguments) if refused is None else refused)

    def new(self, _: Any) -> None:
        """NEWOBJ, which makes an object of a class: only a dict, from the classes of dicts."""
        cls, arguments = self.pop(2)
        if isinstance(cls, Refused):
            self.stack.append(cls)
        elif isinstance(cls, Global) and cls.name in self.dict_classes and arguments == ():
            self.stack.append({})
        else:
            raise forbidden("the pickle makes an object of a class that is not a plain container")

    def build(self, _: Any) -> None:
        """BUILD, which sets attributes: only what the allow-list made for it."""
        state = self.pop(1)[0]
        target = self.top()
        if isinstance(target, Settable):
            target.set_state(state)
        elif not isinstance(target, Refused):
            raise forbidden(f"the pickle sets attributes of a {type(target).__name__}")

    def persistent_id(self, _: Any) -> None:
        """BINPERSID, which refers to something outside the pickle."""
        if self.persistent is None:
            raise forbidden("the pickle refers to objects outside it")
        self.stack.append(self.persistent(self.pop(1)[0]))


def _checked_constant(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        raise damaged(f"an integer of {value.bit_length()} bits")
    if isinstance(value, str):
        value.encode()  # a half of a surrogate pair is a ValueError: no file could be written with it
    return value


def _check_protocol(_: Machine, version: int) -> None:
    if version > 5:
        raise forbidden(f"the pickle is of protocol {version}, expected 2 to 5")


_CONSTANTS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
    | {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
)
_INSTRUCTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": _check_protocol,
    "FRAME": lambda machine, size: None,
    "STOP": lambda machine, _: None,  # genops ends here
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "MARK": Machine.mark,
    "TUPLE": lambda machine, _: machine.push_tuple(machine.pop_to_mark()),
    "TUPLE1": lambda machine, _: machine.push_tuple(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push_tuple(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push_tuple(machine.pop(3)),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "BINPUT": Machine.remember,
    "LONG_BINPUT": Machine.remember,
    "BINGET": Machine.recall,
    "LONG_BINGET": Machine.recall,
    "GLOBAL": lambda machine, names: machine.push_global(names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.push_global(machine.pop(2)),
    "REDUCE": Machine.call,
    "NEWOBJ": Machine.new,
    "BUILD": Machine.build,
    "BINPERSID": Machine.persistent_id,
}
