"""What a spec may name."""

from typing import Any

from fastapi import APIRouter

from api.schemas import CatalogEntry, CatalogList
from kdcore import catalog

router = APIRouter(prefix="/catalog", tags=["catalog"])


@router.get("/losses", summary="The losses")
def list_losses() -> CatalogList:
    return _list(catalog.catalog_losses())


@router.get("/models", summary="The model families")
def list_models() -> CatalogList:
    return _list(catalog.catalog_models())


@router.get("/data", summary="The data sources")
def list_data() -> CatalogList:
    return _list(catalog.catalog_data())


@router.get("/spec", summary="The JSON Schema of a spec")
def get_spec_schema() -> dict[str, Any]:
    """Of a spec as it is submitted: what has a default may be left out."""
    return catalog.spec_schema()


def _list(entries: list[dict[str, Any]]) -> CatalogList:
    return CatalogList(data=[CatalogEntry(**entry) for entry in entries])
