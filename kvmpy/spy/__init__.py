"""Other programs' use of KVM, seen from outside through ptrace: their calls, their guests' exits."""
