"""ACPI tables: an assembler of AML, the DSDT, the fixed tables, and their place in memory."""
