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


def ports_used(machine):
    """Each access to COM1's data and line status, in order: "sent", "taken", or the status that was read."""
    seen = []

    def listen(event):
        if event.data["port"] == 0x3F8:
            seen.append("sent" if event.data["write"] else "taken")
        elif event.data["port"] == 0x3FD and not event.data["write"]:
            seen.append(event.data["value"])

    machine.trace("io", listen)
    return seen


def asked_before(seen, what, bit):
    """Whether the status that was read last before each `what` had that bit."""
    status = 0
    for one in seen:
        if one == what and not status & bit:
            return False
        status = one if isinstance(one, int) else 0
    return True


def test_it_waits_for_the_transmitter(soft_machine, boot, hint):
    seen = ports_used(boot(soft_machine))
    with hint("the greeting must come first"):
        soft_machine.expect("ready\n", timeout=3)
    with hint("put must read the line status (port 0x3FD) before every byte, until bit 5 is set"):
        assert asked_before(seen, "sent", 1 << 5), "a byte was sent that the transmitter had not been asked for"


def test_it_waits_for_input(soft_machine, boot, hint):
    seen = ports_used(boot(soft_machine))
    with hint("the greeting must come first"):
        soft_machine.expect("ready\n", timeout=3)
    soft_machine.run(0.1)
    soft_machine.send("abcq")
    with hint("get must read the line status (port 0x3FD) before every byte, until bit 0 is set"):
        soft_machine.expect("ABC", timeout=3)
        assert asked_before(seen, "taken", 1 << 0), "a byte was taken where none was waiting"
