"""What the wire and the kernel's tables show of a link-local program, row by row of its requirements (`rows`).

    pytest conformance --dut "COMMAND {netns} {ifname}" --report FILE

It knows nothing of any program: COMMAND stands for one, `device` says what it is given. How to start some programs is
in `adapters`. `page` makes docs/conformance.md from reports.
"""
