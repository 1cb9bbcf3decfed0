# autoip in a container, for an interface of the host:
#
#   make image                      with buildah; or docker build -t autoip .
#   docker run --network host --cap-drop ALL --cap-add NET_RAW --cap-add NET_ADMIN \
#       --cap-add SETUID --cap-add SETGID --cap-add CHOWN \
#       --security-opt no-new-privileges -v autoip:/var/lib/autoip autoip eth0
#
# With --cap-add BPF as well, ARP for the address leaves by broadcast as RFC 3927 demands; without
# it there is a second answer by broadcast.
#
# The volume keeps the last address; without it (or with --no-state) each start draws anew.
#
# BASE is any Debian image, with a Python of its own or without one:
#
#   docker build --build-arg BASE=debian:trixie-slim -t autoip .
#
# The program begins as root, and becomes the user `autoip` with NET_RAW and NET_ADMIN, for which it needs
# SETUID, SETGID and, where the volume is root's, CHOWN. No user with capabilities on the file: those would be
# on the Python interpreter, and so on every script that it runs; they are void under
# no-new-privileges; and they fail at exec, without a word from us, when one of the two is not
# granted. The program gives up the rest itself, also when it is run with more.

ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
RUN set -eu; \
    export DEBIAN_FRONTEND=noninteractive; \
    packages="gcc libc6-dev"; \
    python3 -c "import ensurepip, sysconfig; open(sysconfig.get_path('include') + '/Python.h')" \
        2>/dev/null || packages="$packages python3 python3-dev python3-venv"; \
    apt-get update -q; \
    apt-get install -q -y --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# What runs is an environment without pip; the wheels are what goes into it.
RUN set -eu; \
    python3 -m venv /tools; \
    /tools/bin/python -m pip install -q --disable-pip-version-check --upgrade pip; \
    /tools/bin/python -m pip wheel -q --wheel-dir /wheels .; \
    python3 -m venv --without-pip /opt/autoip; \
    /tools/bin/python -m pip --python /opt/autoip/bin/python install -q --no-index \
        --find-links /wheels autoip; \
    cd /; /opt/autoip/bin/python -m autoip --version

FROM ${BASE}
RUN set -eu; \
    command -v python3 >/dev/null || { \
        apt-get update -q; \
        DEBIAN_FRONTEND=noninteractive \
            apt-get install -q -y --no-install-recommends python3; \
        rm -rf /var/lib/apt/lists/*; \
    }
# The same base, so the interpreter that the environment points at is at the same place.
COPY --from=build /opt/autoip /opt/autoip
ENV PATH=/opt/autoip/bin:$PATH
RUN useradd --system --no-create-home --home-dir / --shell /usr/sbin/nologin autoip; \
    install -d -o autoip -g autoip /run/autoip /var/lib/autoip
WORKDIR /
# Also the default; said because the address is taken off on this signal.
STOPSIGNAL SIGTERM
# Healthy: each interface that is served holds an address. A cable that is out, or a lease beside the policy fallback, is
# unhealthy as well, so this is for who looks, not for who would start the container again.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-m", "autoip", "status"]
ENTRYPOINT ["python", "-m", "autoip"]
