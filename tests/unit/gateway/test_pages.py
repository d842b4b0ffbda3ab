"""The pages for people and the description for programs: all that is served is there."""

from pathlib import Path

import aiohttp
import pytest

from gateway.http.pages import description
from gateway.server import create_app, listening, make_gateway
from topics import Settings


@pytest.mark.parametrize("has_files", [True, False])
async def test_the_description_has_each_endpoint_and_no_other(
    tmp_path: Path, has_files: bool
) -> None:
    app = create_app(make_gateway(Settings(gateway_files=str(tmp_path) if has_files else None)))
    served = {
        (route.resource.canonical.replace("{id:.+}", "{id}"), route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.resource.canonical.startswith("/v1/")
    }
    told = description(has_files=has_files)["paths"]
    described = {(path, method) for path, methods in told.items() for method in methods}
    assert described == {each for each in served if each[1] != "head"}


async def test_the_first_page_has_lines_that_work_as_they_stand() -> None:
    settings = Settings(gateway_port=0, bootstrap_servers="127.0.0.1:1")
    async with listening(make_gateway(settings)) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        async with session.get(url) as answer:
            page = await answer.text()
        assert f'OpenAI(base_url="{url}/v1", api_key="any")' in page
        async with session.get(url, headers={"Host": "<script>"}) as answer:
            assert "<script>" not in await answer.text()
        async with session.get(f"{url}/docs") as answer:
            assert "POST /v1/chat/completions" in await answer.text()
