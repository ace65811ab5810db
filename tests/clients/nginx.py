"""The nginx configuration of QUICKSTART.md in front of the server, with its times made short."""

import json
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from checks import API_KEY, ORIGIN, PROMPT, check, expect, expect_base64, expect_url, finish, png

PORT = int(os.environ.get("NGINX_PORT", "8493"))
PROXY = f"http://127.0.0.1:{PORT}"
quickstart = Path(__file__).parents[2].joinpath("QUICKSTART.md").read_text()
snippet = re.search(r"```nginx\n(.*?)```", quickstart, re.DOTALL).group(1)
snippet = snippet.replace("http://127.0.0.1:8000", ORIGIN).replace("443 ssl", f"127.0.0.1:{PORT}")
snippet = re.sub(r"^ *ssl_certificate.*\n", "", snippet, flags=re.MULTILINE)
snippet = snippet.replace("server_name images.example.org;", "server_name 127.0.0.1;")


def form(fields, image):
    parts = [f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    parts.append('--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n')
    return "".join(parts).encode() + image + b"\r\n--b--\r\n"


def edit(fields, image=None):
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "multipart/form-data; boundary=b"}
    body = form({"prompt": PROMPT, **fields}, image or png())
    return urllib.request.urlopen(urllib.request.Request(f"{PROXY}/v1/images/edits", body, headers), timeout=60)


with tempfile.TemporaryDirectory() as folder:
    config = f"""
daemon off; error_log {folder}/error.log; pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {snippet}
}}
"""
    Path(folder, "nginx.conf").write_text(config)
    process = subprocess.Popen(["nginx", "-c", f"{folder}/nginx.conf", "-p", folder])
    time.sleep(1)
    try:

        @check("an edit goes through")
        def _():
            expect_base64(json.load(edit({}))["data"][0]["b64_json"])

        @check("an upload far above nginx's own megabyte does, too")
        def _():
            # Bytes after the end of a picture are no part of it.
            large = png() + bytes(30 << 20)
            expect_base64(json.load(edit({}, large))["data"][0]["b64_json"])

        @check("events are passed on one by one")
        def _():
            answer = edit({"stream": "true", "partial_images": "1", "num_inference_steps": "150"})
            times = [time.monotonic() for line in answer if line.startswith(b"event:")]
            expect(len(times) == 2 and times[1] - times[0] > 0.1, times)

        @check("addresses of pictures are the proxy's")
        def _():
            url = json.load(edit({"response_format": "url"}))["data"][0]["url"]
            # Without the settings that QUICKSTART names, the server only knows the Host.
            expect("images/files/" in url and f"//127.0.0.1:{PORT}/" in url.replace("https", "http"), url)
            expect_url(url.replace(PROXY, ORIGIN))

        @check("a 401 in the middle of a large upload is read")
        def _():
            headers = {"content-type": "multipart/form-data; boundary=b"}
            request = urllib.request.Request(f"{PROXY}/v1/images/edits", bytes(40 << 20), headers)
            try:
                urllib.request.urlopen(request, timeout=60)
            except urllib.error.HTTPError as error:
                expect(error.code == 401, error)
            else:
                raise AssertionError("it should be refused")
    finally:
        process.terminate()
        process.wait(10)
        print(Path(folder, "error.log").read_text()[-1000:] if os.environ.get("VERBOSE") else "", end="")

finish()
