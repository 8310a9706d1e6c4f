"""The sentences that the demo embeds, by subject: a sentence's nearest neighbour should be of its own subject."""

from __future__ import annotations

#: Lengths differ within a subject on purpose: a quantized model has to handle padding and short inputs too.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "rain": (
        "It rained all night.",
        "Heavy showers are forecast for tomorrow morning, so take an umbrella with you.",
        "The streets are still wet from the downpour.",
    ),
    "drought": (
        "The reservoir is almost empty after three dry summers.",
        "Farmers worry about their crops, since the fields have had no water for two months and the wells are low.",
        "A long drought has parched the land.",
    ),
    "bread": (
        "Let the dough rest for an hour before you bake it.",
        "Fresh bread from a wood-fired oven has a dark and crackling crust.",
        "The baker kneads flour, water, yeast and salt by hand every morning at four.",
    ),
    "soup": (
        "Simmer the lentils with cumin, garlic and a bay leaf until the soup is thick.",
        "The soup needs salt.",
        "A bowl of hot vegetable broth is what I like to eat in winter.",
    ),
    "planets": (
        "Jupiter has at least ninety moons.",
        "Saturn's rings are made of ice and rock, and some of its moons may hide an ocean below their frozen crust.",
        "Mars is the fourth planet from the sun.",
    ),
    "space travel": (
        "Astronauts on the space station orbit the Earth sixteen times a day.",
        "The rocket's first stage came back and landed upright.",
        "After a flight of eight months the crew of the spacecraft will have to land by themselves.",
    ),
    "interest rates": (
        "The central bank raised interest rates again.",
        "Higher rates make mortgages dearer.",
        "Economists expect that borrowing will become cheaper once inflation is back at two percent.",
    ),
    "shares": (
        "Shares of the airline fell by eight percent after it warned of smaller profits this year.",
        "The stock market closed higher.",
        "Investors sold their shares in the company when its profits shrank.",
    ),
    "software bugs": (
        "The program crashed because a pointer was null.",
        "Before you merge the branch, run all the tests, since the last change broke the memory allocator.",
        "I spent the afternoon with the debugger until I found the bug.",
    ),
    "processors": (
        "This processor multiplies integers in fewer cycles than floating-point numbers.",
        "The chip has four cores and a large cache.",
        "Vector instructions let a CPU work on sixteen numbers at once.",
    ),
    "injuries": (
        "Wash the wound with clean water and put a bandage on it.",
        "He broke his leg.",
        "The surgeon operated on her injured knee, and six weeks later she could walk without crutches.",
    ),
    "vaccines": (
        "Vaccines train the immune system.",
        "Children are vaccinated against measles when they are about one year old.",
        "Two injections a month apart protect most people from the virus for several years.",
    ),
    "football": (
        "The goalkeeper saved a penalty in the last minute.",
        "The striker scored twice and the team won the cup.",
        "Our football club lost the final although it had the better chances and hit the post three times.",
    ),
    "running": (
        "She won the marathon.",
        "Every morning before breakfast he runs ten kilometres along the river.",
        "The runners were exhausted when they crossed the finish line.",
    ),
    "cats": (
        "The cat sleeps on the warm windowsill.",
        "Our kitten plays with a ball of wool.",
        "Cats purr when they are stroked, but also when they are ill or afraid, and nobody knows quite why.",
    ),
    "birds": (
        "Every autumn the storks fly south across the sea.",
        "Crows are clever birds.",
        "A pair of swallows has built its nest under the roof and feeds five hungry chicks.",
    ),
}
