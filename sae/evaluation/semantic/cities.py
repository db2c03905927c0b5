"""Cities with three attributes of each, in the manner of RAVEL (Huang et al. 2024, arXiv:2402.17700)."""

from __future__ import annotations

from typing import NamedTuple


class AttributeTask(NamedTuple):
    """Entities, and prompts that ask a language model for their attributes."""

    name: str
    entities: dict[str, dict[str, str]]
    """Entity -> attribute -> value."""
    templates: dict[str, str]
    """Attribute -> prompt with {entity}, whose next word is the value."""


_COUNTRIES = {
    "France": ("Europe", "French"),
    "Germany": ("Europe", "German"),
    "Italy": ("Europe", "Italian"),
    "Spain": ("Europe", "Spanish"),
    "Russia": ("Europe", "Russian"),
    "Japan": ("Asia", "Japanese"),
    "China": ("Asia", "Chinese"),
    "India": ("Asia", "Hindi"),
    "Egypt": ("Africa", "Arabic"),
    "Australia": ("Australia", "English"),
    "Brazil": ("South America", "Portuguese"),
}
_CITIES = {
    "France": "Paris Lyon Marseille Toulouse Nice Bordeaux Nantes Strasbourg Lille Grenoble",
    "Germany": "Berlin Munich Hamburg Frankfurt Cologne Dresden Leipzig Stuttgart Nuremberg Hanover",
    "Italy": "Rome Milan Venice Florence Naples Turin Bologna Genoa Verona Palermo",
    "Spain": "Madrid Barcelona Seville Valencia Bilbao Granada Zaragoza Toledo Salamanca Malaga",
    "Russia": "Moscow Novosibirsk Vladivostok Kazan Volgograd Murmansk Omsk Irkutsk",
    "Japan": "Tokyo Osaka Kyoto Hiroshima Nagasaki Yokohama Kobe Nagoya Fukuoka Sapporo",
    "China": "Beijing Shanghai Guangzhou Shenzhen Nanjing Wuhan Chengdu Tianjin Hangzhou Chongqing",
    "India": "Mumbai Delhi Kolkata Bangalore Chennai Hyderabad Jaipur Pune Lucknow Varanasi",
    "Egypt": "Cairo Alexandria Luxor Aswan Giza",
    "Australia": "Sydney Melbourne Brisbane Perth Adelaide Canberra Darwin Hobart",
    "Brazil": "Brasilia Recife Salvador Fortaleza Curitiba Manaus",
}

CITIES = AttributeTask(
    "cities",
    {
        city: {"country": country, "continent": _COUNTRIES[country][0], "language": _COUNTRIES[country][1]}
        for country, cities in _CITIES.items()
        for city in cities.split()
    },
    {
        "country": "The city of {entity} is in the country of",
        "continent": "The city of {entity} is on the continent of",
        "language": "The official language in the city of {entity} is",
    },
)
"""97 cities of 11 countries; the templates are those that the demo model answers best of the few that were tried."""
