"""RFC 5256 §3, step by step, with objects and lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    number: int
    message_id: str
    references: list[str]
    date: int
    subject: str
    reply: bool


class Node:
    def __init__(self, row: Row | None = None) -> None:
        self.row = row
        self.parent: Node | None = None
        self.children: list[Node] = []

    def above(self) -> list[Node]:
        found: list[Node] = [self]
        while found[-1].parent is not None:
            found.append(found[-1].parent)
        return found

    def take(self, child: Node) -> None:
        child.leave()
        child.parent = self
        self.children.append(child)

    def leave(self) -> None:
        if self.parent is not None:
            self.parent.children.remove(self)
            self.parent = None

    @property
    def subject_row(self) -> Row:
        row = self.row or self.children[0].row
        assert row is not None
        return row

    def everyone(self) -> list[Row]:
        return [self.row] * (self.row is not None) + [row for c in self.children for row in c.everyone()]  # type: ignore[list-item]


def containers(rows: list[Row]) -> Node:
    """Steps 1 and 2."""
    by_id: dict[str, Node] = {}
    own: list[Node] = []
    every: list[Node] = []
    for row in rows:
        node = by_id.get(row.message_id) if row.message_id else None
        if node is None or node.row is not None:
            node = Node()
            every.append(node)
            if row.message_id:
                by_id.setdefault(row.message_id, node)
        node.row = row
        own.append(node)
    for row, this in zip(rows, own, strict=True):
        before: Node | None = None
        for reference in row.references:
            node = by_id.get(reference)
            if node is None:
                node = by_id[reference] = Node()
                every.append(node)
            if before is not None and node.parent is None and node not in before.above():
                before.take(node)
            before = node
        if this.parent is not before:
            this.leave()
            if before is not None and this not in before.above():
                before.take(this)
    root = Node()
    for node in every:
        if node.parent is None:
            root.take(node)
    return root


def prune(node: Node, root: Node) -> None:
    """Step 3."""
    for child in list(node.children):
        prune(child, root)
    if node is root or node.row is not None:
        return
    parent = node.parent
    assert parent is not None
    if not node.children:
        node.leave()
    elif parent is not root or len(node.children) == 1:
        at = parent.children.index(node)
        for child in node.children:
            child.parent = parent
        parent.children[at : at + 1] = node.children
        node.parent = None


def date_of(node: Node) -> tuple[int, int]:
    row = node.row or node.children[0].row
    assert row is not None
    return row.date, row.number


def newest_of(node: Node) -> tuple[int, int]:
    return max((row.date, row.number) for row in node.everyone())


def sort(node: Node, key: Callable[[Node], tuple[int, int]]) -> None:
    for child in node.children:
        sort(child, date_of)
    node.children.sort(key=key)


def merge(root: Node) -> None:
    """Step 5."""
    table: dict[str, Node] = {}
    for node in root.children:
        subject = node.subject_row.subject
        if not subject:
            continue
        old = table.get(subject)
        if old is None or (
            old.row is not None and (node.row is None or (old.row.reply and not node.row.reply))
        ):
            table[subject] = node
    for node in list(root.children):
        subject = node.subject_row.subject
        if not subject or table[subject] is node:
            continue
        old = table[subject]
        if old.row is None and node.row is None:
            for child in list(node.children):
                old.take(child)
            node.leave()
        elif old.row is None or (node.row is not None and node.row.reply and not old.row.reply):
            old.take(node)
        else:
            dummy = Node()
            root.take(dummy)
            dummy.take(old)
            dummy.take(node)
            table[subject] = dummy


def written(node: Node) -> str:
    own = "" if node.row is None else str(node.row.number)
    if len(node.children) == 1:
        return f"{own} {written(node.children[0])}".strip()
    return (own + " " * bool(own and node.children)) + "".join(f"({written(c)})" for c in node.children)


def references(rows: list[Row], newest: bool = False) -> str:
    root = containers(rows)
    prune(root, root)
    sort(root, newest_of if newest else date_of)
    if not newest:
        merge(root)
        sort(root, date_of)
    return "".join(f"({written(node)})" for node in root.children)


def ordered_subject(rows: list[Row]) -> str:
    threads: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.date, row.number)):
        threads.setdefault(row.subject, []).append(row)
    found = []
    for first, *rest in threads.values():
        if len(rest) == 1:
            found.append(f"({first.number} {rest[0].number})")
        else:
            found.append(f"({first.number}{' ' * bool(rest)}{''.join(f'({row.number})' for row in rest)})")
    return "".join(found)
