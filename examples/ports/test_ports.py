"""Grades the serial port."""


def test_it_greets(machine, boot, hint):
    boot(machine)
    with hint("nothing came out of COM1: do out8 and in8 execute OUT and IN, and does put wait for bit 5 of port 0x3FD?"):
        machine.expect("ready\n", timeout=3)


def test_it_answers_in_capitals(machine, boot, hint):
    boot(machine)
    with hint("the greeting must come first"):
        machine.expect("ready\n", timeout=3)
    machine.send("hello, World 1")
    with hint("get must wait while bit 0 of port 0x3FD is clear, then read port 0x3F8"):
        machine.expect("HELLO, WORLD 1", timeout=3)
        machine.send("q")
        assert machine.exit_code == 0


def test_it_waits_for_the_transmitter(soft_machine, boot, hint):
    boot(soft_machine)
    asked = []
    soft_machine.trace(lambda event: asked.append((event.data["port"], event.data["write"])) if event.what == "io" else None)
    with hint("the greeting must come first"):
        soft_machine.expect("ready\n", timeout=3)
    with hint("put must read the line status (port 0x3FD) before every byte"):
        sent = [number for number, what in enumerate(asked) if what == (0x3F8, True)]
        assert all(asked[number - 1] == (0x3FD, False) for number in sent), "a byte was sent without a look at the line status"
