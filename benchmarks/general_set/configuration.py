"""Configuration in the forms that programs read: INI, TOML, YAML, environment, units, servers, makefiles, schemas, queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from structured import document
from words import PRODUCTS, SERVICES, VERBS, Hand


def value(h: Hand) -> Any:
    return h.pick((h.number(0, 9000), h.chance(0.5), h.pick(SERVICES), f"/var/lib/{h.pick(SERVICES)}", f"{h.number(1, 90)}s", f"{h.number(1, 64)}MB", h.number(1, 99) / 10, f"https://{h.pick(SERVICES)}.example.net"))  # fmt: skip


def key(h: Hand) -> str:
    return h.pick(("host", "port", "timeout", "retries", "level", "path", "enabled", "size", "user", "interval", "max_items", "format", "mode", "cache_dir", "workers", "region", "verbose"))  # fmt: skip


def ini(h: Hand) -> str:
    comment, sign = h.pick("#;"), h.pick((" = ", "=", ": "))
    return "\n\n".join(f"[{name}]\n" + (f"{comment} {h.sentence()}\n" if h.chance(0.4) else "") + "\n".join(f"{key(h)}{sign}{str(value(h)).lower()}" for _ in range(h.number(1, 6))) for name in h.some(SERVICES, 1, 5))  # fmt: skip


def toml_value(found: Any) -> str:
    return str(found).lower() if isinstance(found, bool) else f'"{found}"' if isinstance(found, str) else str(found)


def toml(h: Hand) -> str:
    head = f'[project]\nname = "{h.pick(SERVICES)}"\nversion = "{h.number(0, 9)}.{h.number(0, 30)}.{h.number(0, 9)}"\ndependencies = [\n' + "".join(f'  "lib{name}>={h.number(1, 9)}.{h.number(0, 9)}",\n' for name in h.some(SERVICES, 1, 5)) + "]\n"  # fmt: skip
    tables = "\n\n".join(f"[tool.{name}]\n" + "\n".join(f"{key(h)} = {toml_value(value(h))}" for _ in range(h.number(1, 5))) for name in h.some(SERVICES, 1, 4))  # fmt: skip
    return h.pick((head + "\n" + tables, tables))


def yaml_of(h: Hand) -> str:
    jobs = {name: {"runs-on": h.pick(("ubuntu-latest", "macos-14")), "steps": [{"uses": "actions/checkout@v4"}, *({"run": f"make {h.pick(VERBS)}"} for _ in range(h.number(1, 4)))]} for name in h.some(["test", "lint", "build", "docs", "deploy"], 1, 3)}  # fmt: skip
    services = {name: {"image": f"{name}:{h.number(1, 9)}.{h.number(0, 9)}", "ports": [f"{h.number(3000, 9999)}:80"], "environment": {"LOG_LEVEL": "info", "DEBUG": h.chance(0.5)}} for name in h.some(SERVICES, 1, 4)}  # fmt: skip
    kube = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": h.pick(SERVICES)}, "spec": {"replicas": h.number(1, 9), "template": {"spec": {"containers": [{"name": name, "image": f"{name}:latest"} for name in h.some(SERVICES, 1, 2)]}}}}  # fmt: skip
    content = h.pick(({"name": "CI", "on": ["push", "pull_request"], "jobs": jobs}, {"version": "3.8", "services": services}, kube, document(h), {name: {key(h): value(h) for _ in range(3)} for name in h.some(SERVICES, 1, 5)}))  # fmt: skip
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).strip()


def environment(h: Hand) -> str:
    return "\n".join(
        f"{h.pick(('', '', 'export '))}{name.upper()}_{key(h).upper()}={value(h)}" for name in h.some(SERVICES, 3, 10)
    )


def unit(h: Hand) -> str:
    name = h.pick(SERVICES)
    return f"[Unit]\nDescription={name.title()} daemon\nAfter=network.target\n\n[Service]\nExecStart=/usr/bin/{name} --port {h.number(1000, 9999)}\nRestart={h.pick(('always', 'on-failure'))}\nUser={h.pick(SERVICES)}\n\n[Install]\nWantedBy=multi-user.target"  # fmt: skip


def server(h: Hand) -> str:
    places = "\n".join(f"    location /{name}/ {{\n        proxy_pass http://{h.ip()}:{h.number(3000, 9999)};\n        proxy_read_timeout {h.number(5, 90)}s;\n    }}" for name in h.some(SERVICES, 1, 4))  # fmt: skip
    return f"server {{\n    listen {h.pick((80, 443, 8080))};\n    server_name {h.pick(SERVICES)}.example.org;\n\n{places}\n}}"


def makefile(h: Hand) -> str:
    names = h.some(SERVICES, 2, 5)
    return "CC = gcc\nCFLAGS = -O2 -Wall\n\nall: " + " ".join(names) + "\n\n" + "\n\n".join(f"{name}: {name}.o {h.pick(names)}.h\n\t$(CC) $(CFLAGS) -o $@ {name}.o" for name in names) + "\n\nclean:\n\trm -f *.o\n\n.PHONY: all clean"  # fmt: skip


def container(h: Hand) -> str:
    return "\n".join([f"FROM {h.pick(('python:3.12-slim', 'node:22', 'debian:12', 'golang:1.22', 'alpine'))}", f"WORKDIR /{h.pick(SERVICES)}", *h.some(["COPY . .", "RUN apt-get update && apt-get install -y git", "RUN make", f"ENV PORT={h.number(1000, 9999)}", "USER nobody", "EXPOSE 8080", "RUN npm ci --omit=dev"], 2, 5), f'CMD ["./{h.pick(SERVICES)}", "--serve"]'])  # fmt: skip


def timetable(h: Hand) -> str:
    return "\n".join(f"{h.pick(('0', '30', '*/5', '15'))} {h.pick(('*', '3', '*/2', '22'))} * * {h.pick(('*', '1-5', '0'))} /usr/local/bin/{name} --{h.pick(VERBS)}" for name in h.some(SERVICES, 1, 6))  # fmt: skip


def ignored(h: Hand) -> str:
    return "\n".join(h.some(["*.o", "*.pyc", "__pycache__/", "node_modules/", "dist/", "build/", ".env", ".DS_Store", "*.log", "!keep.log", "/tmp/", "coverage/", ".idea/", "*.swp", "# generated"], 4, 11))  # fmt: skip


def schema(h: Hand) -> str:
    name, other = h.some(SERVICES, 2)
    columns = ",\n".join(f"    {key(h)}_{k} {h.pick(('INTEGER', 'TEXT NOT NULL', 'REAL', 'BOOLEAN DEFAULT FALSE', 'TIMESTAMP', 'VARCHAR(40)'))}" for k in range(h.number(1, 5)))  # fmt: skip
    return f"CREATE TABLE {name} (\n    id INTEGER PRIMARY KEY,\n    {other}_id INTEGER REFERENCES {other} (id),\n{columns}\n);"


def query(h: Hand) -> str:
    name, other = h.some(SERVICES, 2)
    return h.pick((
        f"SELECT {name}.id, COUNT(*) AS n\nFROM {name}\nJOIN {other} ON {other}.{name}_id = {name}.id\nWHERE {other}.{key(h)} > {h.number(1, 90)}\nGROUP BY {name}.id\nHAVING COUNT(*) > {h.number(1, 9)}\nORDER BY n DESC\nLIMIT {h.number(5, 50)};",
        f"UPDATE {name} SET {key(h)} = '{h.pick(PRODUCTS)}' WHERE id IN ({', '.join(str(h.number(1, 999)) for _ in range(h.number(1, 6)))});", f"INSERT INTO {name} (id, {key(h)}) VALUES\n" + ",\n".join(f"    ({h.number(1, 999)}, '{what}')" for what in h.some(PRODUCTS, 1, 5)) + ";",
        f"DELETE FROM {name} WHERE {key(h)} IS NULL;", f"CREATE INDEX {name}_{key(h)} ON {name} ({key(h)}, id);", f"WITH recent AS (\n  SELECT * FROM {name} WHERE created > now() - interval '{h.number(1, 60)} days'\n)\nSELECT avg({key(h)}) FROM recent;",
    ))  # fmt: skip


KINDS: tuple[Callable[[Hand], str], ...] = (
    ini,
    ini,
    toml,
    yaml_of,
    yaml_of,
    yaml_of,
    environment,
    unit,
    server,
    makefile,
    container,
    timetable,
    ignored,
    schema,
    query,
    query,
)


def configuration(h: Hand, count: int) -> list[str]:
    return [h.pick(KINDS)(h) for _ in range(count)]
