"""The bare ASGI application that the gateway is measured beside: it reads the body and answers it, nothing else."""

import sys

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

HEADERS = [(b"content-type", b"application/json")]


async def app(scope, receive, send):
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": body})


async def main():
    await Server(
        app, port=int(sys.argv[1]), interface=Interfaces.ASGINL, http=HTTPModes.http1, backlog=4096, backpressure=4096,
        log_enabled=False,
    ).serve()  # fmt: skip


if __name__ == "__main__":
    uvloop.run(main())
