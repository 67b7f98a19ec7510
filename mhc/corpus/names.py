"""People, towns and goods that several families of topics share."""

from .grammar import Pen

PEOPLE = [(name, "she") for name in
          ["Anna", "Berta", "Clara", "Dora", "Emma", "Fatima", "Greta", "Hannah", "Ines", "Julia", "Kira", "Lena", "Mia", "Nora", "Olga", "Paula", "Rosa", "Sara", "Tina", "Vera", "Yuki", "Zoe", "Amira", "Bella", "Daisy", "Elena", "Freya", "Ivy", "Lucy", "Maria"]] + [
         (name, "he") for name in
          ["Adam", "Ben", "Carlos", "David", "Emil", "Felix", "Georg", "Hugo", "Ivan", "Jonas", "Karim", "Leo", "Max", "Noah", "Oscar", "Peter", "Rafael", "Sam", "Tom", "Viktor", "Walter", "Yusuf", "Arthur", "Bruno", "Dan", "Erik", "Finn", "Henry", "Luis", "Marco"]]  # fmt: skip
TOWNS = ["Ashford", "Brookfield", "Cedarville", "Dunmore", "Eastport", "Fairview", "Glenwood", "Harwick", "Ironbridge", "Juniper", "Kingsley", "Lakeside", "Millbrook", "Northgate", "Oakham", "Pinehurst", "Quarrytown", "Riverside", "Stonebury", "Thornton", "Underhill", "Valley", "Westport", "Yarrow"]  # fmt: skip
SHOPPING = [("apple", 20), ("loaf", 180), ("pencil", 40), ("notebook", 150), ("lemon", 35), ("candle", 120), ("cup", 250),
            ("ticket", 300), ("stamp", 80), ("melon", 200), ("postcard", 60), ("egg", 25), ("orange", 45), ("ball", 350),
            ("ribbon", 90), ("scarf", 900), ("cake", 700), ("balloon", 50), ("jar", 230), ("brush", 310)]  # fmt: skip


def pronouns(pen: Pen) -> tuple[str, str]:
    """Return a name and "he" or "she"."""
    return pen.pick(PEOPLE)


OBJECT = {"he": "him", "she": "her"}
OWNER = {"he": "his", "she": "her"}
