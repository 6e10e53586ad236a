"""Logs of many programs: servers, systems, builds, tests, tracebacks, consoles."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable

from words import ADJECTIVES, DAYS, MONTHS, PRODUCTS, SERVICES, VERBS, Hand

LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "INFO", "WARN", "ERROR")
PATHS = (
    "/",
    "/index.html",
    "/api/v1/orders",
    "/login",
    "/static/app.css",
    "/img/logo.png",
    "/search?q=lamp",
    "/robots.txt",
    "/health",
    "/api/v2/users/77",
    "/cart",
    "/feed.xml",
)
AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64)",
    "curl/8.5.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X)",
    "python-requests/2.31.0",
    "-",
)


def ticks(h: Hand, count: int) -> list[datetime.datetime]:
    now, found = h.moment(), []
    for _ in range(count):
        now += datetime.timedelta(milliseconds=h.number(1, 90_000))
        found.append(now)
    return found


def message(h: Hand) -> str:
    name = h.pick(SERVICES)
    return h.pick((
        f"{name} started in {h.number(12, 9000)} ms", f"connection to {h.ip()}:{h.pick((5432, 6379, 443, 9092))} refused",
        f"retry {h.number(1, 5)} of 5 for {name}", f"user {h.number(100, 99999)} logged in", f"cache miss for key {name}:{h.hex(6)}",
        f"disk usage at {h.number(40, 99)}%", f"accepted job {h.hex(8)} ({h.number(1, 400)} items)", f"slow query: {h.number(300, 9000)} ms",
        f"reloading configuration from /etc/{name}.conf", f"certificate expires in {h.number(1, 60)} days", f"dropped {h.number(1, 60)} packets",
        f"healthcheck {h.pick(('ok', 'failed'))} status={h.pick((200, 503))}", f"order {h.number(10000, 99999)} {h.pick(('paid', 'shipped', 'cancelled'))}",
    ))  # fmt: skip


def application(h: Hand) -> str:
    style = h.pick((
        "{t:%Y-%m-%d %H:%M:%S},{ms:03} {level:<5} [{name}] {text}", "[{t:%H:%M:%S}] {level}: {text}", "{t:%Y-%m-%dT%H:%M:%S}.{ms:03}Z {level} {name} - {text}",
        "{level} {t:%d/%b/%Y %H:%M} {name}: {text}", "time={t:%Y-%m-%dT%H:%M:%SZ} level={low} component={name} msg=\"{text}\"", "{t:%b %d %H:%M:%S} {name}[{pid}]: {text}",
        "{t:%m%d %H:%M:%S}.{ms:03}000 {pid} {name}.cc:{line}] {text}",
    ))  # fmt: skip
    pid = h.number(300, 32000)
    return "\n".join(style.format(t=t, ms=t.microsecond // 1000, level=(level := h.pick(LEVELS)), low=level.lower(), name=h.pick(SERVICES), text=message(h), pid=pid, line=h.number(20, 900)) for t in ticks(h, h.number(3, 16)))  # fmt: skip


def access(h: Hand) -> str:
    return "\n".join(f'{h.ip()} - {h.pick(("-", "-", "admin"))} [{t:%d/%b/%Y:%H:%M:%S} +0000] "{h.pick(("GET", "GET", "POST", "HEAD"))} {h.pick(PATHS)} HTTP/1.1" {h.pick((200, 200, 200, 301, 304, 404, 500))} {h.number(0, 60000)} "-" "{h.pick(AGENTS)}"' for t in ticks(h, h.number(3, 12)))  # fmt: skip


def json_lines(h: Hand) -> str:
    return "\n".join(json.dumps({"ts": t.isoformat(timespec="milliseconds"), "level": h.pick(LEVELS).lower(), "logger": h.pick(SERVICES), "msg": message(h), "pid": h.number(1, 9999)}) for t in ticks(h, h.number(2, 8)))  # fmt: skip


def kernel(h: Hand) -> str:
    now, lines = h.number(0, 90000) / 10, []
    for _ in range(h.number(4, 14)):
        now += h.number(1, 900) / 1000
        lines.append(f"[{now:12.6f}] " + h.pick((
            f"usb 1-{h.number(1, 9)}: new high-speed USB device number {h.number(2, 30)} using xhci_hcd", f"eth0: link up, {h.pick((100, 1000))} Mbps, full duplex",
            f"EXT4-fs (sda{h.number(1, 5)}): mounted filesystem with ordered data mode", f"CPU{h.number(0, 15)}: temperature above threshold", f"{h.pick(SERVICES)}: module loaded",
            f"audit: type=1400 pid={h.number(100, 9999)} apparmor=\"ALLOWED\"", f"Out of memory: Killed process {h.number(100, 9999)} ({h.pick(SERVICES)})",
        )))  # fmt: skip
    return "\n".join(lines)


def traceback(h: Hand) -> str:
    names = h.some(SERVICES, 2, 5)
    frames = "\n".join(f'  File "/srv/app/{name}.py", line {h.number(3, 400)}, in {h.pick(VERBS)}_{h.pick(("item", "all", "one"))}\n    return {h.pick(names)}.{h.pick(VERBS)}({h.pick(("self", "row", "*args", "key, value"))})' for name in names)  # fmt: skip
    error = h.pick(("KeyError: 'total'", "ValueError: invalid literal for int() with base 10: 'x7'", "TypeError: 'NoneType' object is not iterable", "FileNotFoundError: [Errno 2] No such file or directory: 'orders.csv'", "ZeroDivisionError: division by zero", "AttributeError: 'dict' object has no attribute 'name'"))  # fmt: skip
    return f"Traceback (most recent call last):\n{frames}\n{error}"


def java_trace(h: Hand) -> str:
    names = h.some(SERVICES, 3, 6)
    lines = "\n".join(f"\tat com.example.{name}.{name.title()}Service.{h.pick(VERBS)}({name.title()}Service.java:{h.number(10, 700)})" for name in names)  # fmt: skip
    return f"Exception in thread \"{h.pick(SERVICES)}-{h.number(1, 9)}\" java.lang.{h.pick(('IllegalStateException', 'NullPointerException', 'IndexOutOfBoundsException'))}: {message(h)}\n{lines}"  # fmt: skip


def tests(h: Hand) -> str:
    lines, failed = [], 0
    total = h.number(4, 12)
    for number in range(total):
        bad = h.chance(0.12)
        failed += bad
        lines.append(f"tests/test_{h.pick(SERVICES)}.py::test_{h.pick(VERBS)}_{h.pick(ADJECTIVES)} {'FAILED' if bad else 'PASSED'} [{100 * (number + 1) // total:3}%]")  # fmt: skip
    lines.append(
        f"========= {f'{failed} failed, ' if failed else ''}{total - failed} passed in {h.number(10, 900) / 100:.2f}s ========="
    )
    return "\n".join(lines)


def build(h: Hand) -> str:
    names = h.some(SERVICES, 3, 9)
    return h.pick((
        "\n".join(f"[{100 * (k + 1) // len(names):3}%] Building C object src/{name}.c.o" for k, name in enumerate(names)) + f"\n[100%] Built target {names[0]}",
        "\n".join(f"   Compiling {name} v{h.number(0, 4)}.{h.number(0, 20)}.{h.number(0, 9)}" for name in names) + f"\n    Finished release [optimized] target(s) in {h.number(2, 300)}.{h.number(10, 99)}s",
        "\n".join(f"gcc -O2 -Wall -c {name}.c -o {name}.o" for name in names) + f"\n{names[0]}.c:{h.number(4, 300)}:{h.number(1, 60)}: warning: unused variable ‘{names[1]}’ [-Wunused-variable]",
        "\n".join(f"Step {k + 1}/{len(names)} : {h.pick(('RUN apt-get update', 'COPY . /app', 'WORKDIR /app', f'ENV {name.upper()}=1', 'EXPOSE 8080'))}\n ---> {h.hex(12)}" for k, name in enumerate(names)),
    ))  # fmt: skip


def history(h: Hand) -> str:
    found = []
    for moment in sorted(ticks(h, h.number(1, 4)), reverse=True):
        name = h.name()
        found.append(f"commit {h.hex(40)}\nAuthor: {name} <{h.email(name)}>\nDate:   {moment:%a %b %d %H:%M:%S %Y} +0200\n\n    {h.pick(VERBS).capitalize()} the {h.pick(ADJECTIVES)} {h.pick(SERVICES)}\n")  # fmt: skip
    return "\n".join(found)


def console(h: Hand) -> str:
    name = h.pick(SERVICES)
    return h.pick((
        f"$ ls -l {name}/\ntotal {h.number(4, 400)}\n" + "\n".join(f"-rw-r--r-- 1 {h.name().split()[0].lower()} users {h.number(10, 99999):>6} {h.pick(MONTHS)[:3]} {h.number(1, 28):>2} {h.number(0, 23):02}:{h.number(0, 59):02} {other}.{h.pick(('txt', 'md', 'py', 'csv'))}" for other in h.some(SERVICES, 2, 7)),
        f"$ ping -c 3 {name}.example.net\nPING {name}.example.net ({h.ip()}) 56(84) bytes of data.\n" + "\n".join(f"64 bytes from {h.ip()}: icmp_seq={k} ttl=57 time={h.number(2, 90)}.{h.number(0, 9)} ms" for k in (1, 2, 3)),
        "Filesystem      Size  Used Avail Use% Mounted on\n" + "\n".join(f"/dev/sd{h.pick('abc')}{k}        {h.number(10, 900)}G  {h.number(1, 9)}G   {h.number(1, 90)}G  {h.number(3, 97)}% /{other}" for k, other in enumerate(h.some(SERVICES, 2, 5), 1)),
        f"> SELECT id, article, qty FROM {name} LIMIT 3;\n id  | article        | qty\n-----+----------------+----\n" + "\n".join(f" {h.number(100, 999)} | {what:<14} | {h.number(0, 99):>3}" for what in h.some(PRODUCTS, 3)) + "\n(3 rows)",
        f"{DAYS[0][:3]} 09:00  [{name}] joined\n" + "\n".join(f"{h.number(9, 17):02}:{h.number(0, 59):02} <{h.name().split()[0].lower()}> {message(h)}" for _ in range(h.number(2, 6))),
    ))  # fmt: skip


KINDS: tuple[Callable[[Hand], str], ...] = (application, application, application, access, json_lines, kernel, traceback, java_trace, tests, build, history, console)  # fmt: skip


def logs(h: Hand, count: int) -> list[str]:
    return [h.pick(KINDS)(h) for _ in range(count)]
