"""Checks of a link-local program on the wire and in the kernel's tables, row by row of its requirements (`rows`).

    pytest conformance --dut "COMMAND {netns} {ifname}" --report FILE

The suite has nothing of any program: COMMAND stands for one, `device` describes its arguments. `adapters` starts some
programs. `page` makes docs/conformance.md from reports.
"""
