"""Tenants stay on hardware of their operator; air-cooled pools count as a fifth cheaper."""

from policies import Option
from topics import Profile

OPERATOR_OF = {"acme": "acme"}
AIR_COOLED = 0.8


def refuse(profile: Profile, option: Option) -> str | None:
    """Refuse what another operator runs, to tenants who have one."""
    operator = OPERATOR_OF.get(profile.tenant)
    return None if operator in (None, option.labels.get("operator")) else "another_operator"


def price(profile: Profile, option: Option, price_usd: float) -> float:
    """Return the price that the option is compared by, in US dollars."""
    return price_usd * AIR_COOLED if option.labels.get("cooling") == "air" else price_usd
