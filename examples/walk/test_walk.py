"""Grades the page-table walk."""


def test_the_walk(machine, boot, hint):
    boot(machine)
    with hint(
        "each line above names an address and what walk() gave for it. All of them 0xffff...: nothing is walked yet. "
        "Large pages: stop at bit 7 and keep 30 or 21 bits of the linear address. Entries have flags below bit 12 and at bit 63: mask them."
    ):
        assert machine.exit_code == 0
        assert len(machine.asserts) == 8, "main was changed"
