"""What polled a Mooncake master, or spoke to its store service, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import kvstore
from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster


def ask(
    url: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, str]:
    """Status and text of a request."""
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_master_answers_what_engines_poll(cluster: Cluster) -> None:
    master = f"http://127.0.0.1:{cluster.master.ports['http_port']}"
    assert ask(f"{master}/health") == (200, "OK")
    assert ask(f"{master}/get_all_segments") == (200, "")
    for node in ("a", "b"):
        cluster.start_node(node)
    assert ask(f"{master}/get_all_segments") == (200, "a\nb\n")
    store = cluster.connect(namespace="mooncake")
    keys = sorted(f"model/{i}" for i in range(2500))
    assert all(status.ok for status in store.batch_put(keys, [b"xyz"] * len(keys)))
    status, text = ask(f"{master}/get_all_keys")
    assert status == 200 and sorted(text.split()) == keys
    status, text = ask(f"{master}/query_key?key=model/7")
    where = json.loads(text)
    assert (where["size_"], where["transport_endpoint_"] in "ab") == (3, True)
    assert ask(f"{master}/query_key?key=nobody") == (404, "OBJECT_NOT_FOUND")
    assert ask(f"{master}/query_key")[0] == 400
    status, text = ask(f"{master}/batch_query_keys?keys=model/1,nobody")
    found = json.loads(text)
    assert status == 200 and found["success"] is True
    assert found["data"]["model/1"]["ok"] and not found["data"]["nobody"]["ok"]
    assert found["data"]["model/1"]["values"][0]["transport_endpoint_"] in "ab"
    assert ask(f"{master}/batch_query_keys")[0] == 400
    assert ask(f"{master}/batch_query_keys?keys=" + "a," * 1001)[0] == 400
    assert ask(f"{master}/get_all_keys?namespace=other") == (200, "")
    other = cluster.connect(namespace="other")
    assert other.put("a\nforged", b"x") is kvstore.Status.Ok
    assert ask(f"{master}/get_all_keys?namespace=other") == (200, "a\\nforged\n")
    for method in ("POST", "PUT", "DELETE"):
        assert ask(f"{master}/get_all_keys", method)[0] == 405, "read-only"


def test_with_a_token_file_keys_are_told_to_their_tenants(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    lines = ["engine client t1 " + "s" * 32, "a node * " + "n" * 32, "boss operator * " + "o" * 32]
    tokens.write_text("\n".join(lines) + "\n")
    tokens.chmod(0o600)
    cluster = Cluster(tmp_path, ["--auth-token-file", str(tokens)], str(tokens))
    try:
        master = f"http://127.0.0.1:{cluster.master.ports['http_port']}"
        assert ask(f"{master}/health")[0] == 200
        assert ask(f"{master}/get_all_segments")[0] == 401
        assert ask(f"{master}/get_all_keys?tenant_id=t1")[0] == 401
        mine = "Bearer engine:" + "s" * 32
        assert ask(f"{master}/get_all_segments", Authorization=mine)[0] == 200
        for odd in ("Bearer engine:\xff", "Bearer \xe4:\xf6", "Bearer", "\xff"):
            assert ask(f"{master}/get_all_keys?tenant_id=t1", Authorization=odd)[0] == 401
        assert ask(f"{master}/get_all_keys?tenant_id=t1", Authorization=mine) == (200, "")
        assert ask(f"{master}/get_all_keys", Authorization=mine)[0] == 403
        assert ask(f"{master}/query_key?key=k", Authorization="Bearer engine:wrong")[0] == 401
    finally:
        cluster.close()


def test_objects_over_http_when_it_is_switched_on(cluster: Cluster) -> None:
    closed = cluster.start_node("closed")
    assert ask(f"http://127.0.0.1:{closed.ports['http_port']}/api/exist/k")[0] == 404
    node = cluster.start_node("a", rest_api="localhost", rest_max_body="1kb")
    api = f"http://127.0.0.1:{node.ports['http_port']}/api"

    def put(**body: Any) -> tuple[int, str]:
        return ask(f"{api}/put", "PUT", json.dumps(body).encode())

    assert put(key="a/b c", value="wört") == (200, '{"status":"success"}')
    assert put(key="a/b c", value="another") == (200, '{"status":"success"}')
    key = urllib.parse.quote("a/b c", safe="")
    assert ask(f"{api}/get/{key}") == (200, "wört")
    assert ask(f"{api}/exist/{key}") == (200, '{"exists":true}')
    assert ask(f"{api}/exist/nobody") == (200, '{"exists":false}')
    assert ask(f"{api}/get/nobody") == (404, '{"error":"Key not found"}')
    assert cluster.connect(namespace="mooncake").get("a/b c") == "wört".encode()
    assert put(key="empty", value="")[0] == 200
    assert ask(f"{api}/get/empty") == (200, "")
    assert ask(f"{api}/remove/{key}", "DELETE") == (200, '{"status":"success"}')
    assert ask(f"{api}/remove/{key}", "DELETE")[0] == 404
    assert put(key="large", value="x" * 2000)[0] == 413
    assert put(key="k")[0] == 400 and put(key="", value="x")[0] == 400
    for body in (b"no JSON", b'{"key": "\xff", "value": ""}', b'{"key": ' + b"[" * 1000):
        assert ask(f"{api}/put", "PUT", body)[0] == 400, body
    assert ask(f"{api}/get/" + "k" * 1025)[0] == 400
    assert put(key="more", value="x")[0] == 200
    assert ask(f"{api}/remove_all", "DELETE") == (200, '{"status":"success removed 2 keys"}')
    assert ask(f"{api}/remove_all", "DELETE") == (200, '{"status":"success removed 0 keys"}')
    cluster.master.kill()
    status, text = put(key="k2", value="v")
    assert status in (503, 504), text
