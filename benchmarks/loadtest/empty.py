"""The least that FastAPI can do, served as the service is: `python -m loadtest.empty PORT`."""

import sys

import uvicorn
from fastapi import FastAPI

from api.server import HTTP

app = FastAPI(openapi_url=None)


@app.get("/empty")
async def empty() -> dict[str, str]:
    return {}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), timeout_keep_alive=30, **HTTP)
