"""Questions in families, and the checkable constraints that are put on their answers.

A family is a way of asking with the subjects it is asked of. Training and evaluation share no family, and some kinds of
constraint are never trained on: an answer that keeps those was not learned by heart.
"""

import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

# ---- families ------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[str, list[str]]] = {
    "what": ("What is {}?", [
        "photosynthesis", "gravity", "inflation", "a volcano", "democracy", "an algorithm", "electricity", "a glacier",
        "the water cycle", "a vaccine", "a haiku", "yoga", "jazz", "a mortgage", "recycling", "a comet", "friction",
        "DNA", "a tsunami", "meditation", "a stock market", "origami", "an ecosystem", "magnetism", "a metaphor",
        "compost", "a solar eclipse", "evolution", "a budget", "the ozone layer", "a black hole", "a rainforest",
        "a browser", "sign language", "a fossil", "an earthquake", "a currency", "a coral reef", "a database",
        "a symphony", "nutrition",
    ]),
    "how": ("How do I {}?", [
        "boil an egg", "tie a tie", "clean a cast iron pan", "write a cover letter", "plant tomatoes", "change a tire",
        "learn to swim", "make pancakes", "save money on groceries", "remove a coffee stain", "start a blog",
        "train a puppy", "fall asleep faster", "bake bread", "fix a leaky tap", "wrap a gift", "paint a wall",
        "brew good coffee", "pack a suitcase", "sharpen a knife", "prepare for an interview", "make a paper plane",
        "care for a cactus", "cook rice", "stop hiccups", "read a map", "take better photos", "iron a shirt",
        "grow basil indoors", "organize my desk", "start running", "make lemonade", "build a campfire",
        "learn a new language", "set up a tent", "keep bees away from a picnic", "clean windows",
        "write a thank you note", "remember names", "stay calm before a speech", "store potatoes",
    ]),
    "why": ("Why {}?", [
        "is the sky blue", "do cats purr", "do leaves change color", "is sleep important", "do we yawn",
        "is the ocean salty", "do birds migrate", "do people dream", "does bread rise", "does ice float",
        "do onions make us cry", "is exercise healthy", "do dogs bark", "does the moon change shape",
        "do plants need light", "is honey sweet", "do we get goosebumps", "does metal rust", "is teamwork useful",
        "do we have seasons",
        "does thunder follow lightning", "is reading good for children", "do bees make honey", "do stars twinkle",
        "does popcorn pop", "is the desert cold at night", "do we laugh", "does music make us happy",
        "are bridges built in arches", "do fish live in schools", "does milk spoil", "is the sunset red",
        "are forests important", "do we blink", "do magnets attract iron", "does soap clean", "are libraries useful",
        "is breakfast important", "do batteries run out", "do mountains have snow on top", "do clocks go clockwise",
    ]),
    "difference": ("What is the difference between {}?", [
        "a frog and a toad", "weather and climate", "tea and coffee", "a lake and a pond", "jam and jelly",
        "a novel and a short story", "speed and velocity", "a crocodile and an alligator", "baking and frying",
        "a city and a village", "a virus and a bacterium", "a comet and an asteroid", "rice and pasta",
        "an island and a peninsula", "butter and margarine", "a moth and a butterfly", "knitting and crochet",
        "a debit card and a credit card", "fog and smoke", "a violin and a cello", "a mule and a donkey",
        "fruit and vegetables", "a hill and a mountain", "saving and investing", "an opinion and a fact",
        "a simile and a metaphor", "a turtle and a tortoise", "hardware and software", "walking and running",
        "a poem and a song", "a hotel and a hostel", "mass and weight", "a ship and a boat", "a king and a president",
        "a sofa and a bench", "cotton and wool", "a gas and a liquid", "a lion and a tiger", "oil and water",
        "spring and autumn", "a camera and a telescope",
    ]),
    "advice": ("Give me some advice on {}.", [
        "making new friends", "studying for an exam", "moving to a new city", "eating more vegetables",
        "staying motivated", "talking to a shy person", "buying a used car", "working from home", "managing stress",
        "choosing a pet", "dealing with a noisy neighbor", "asking for a raise", "spending less time on my phone",
        "adopting a cat", "writing a speech", "hosting a dinner party", "hiking alone", "learning the guitar",
        "keeping a diary", "getting up early", "being a good listener", "planning a budget trip",
        "raising a curious child", "decorating a small room", "drinking more water", "handling criticism",
        "starting a garden", "making a good first impression", "running a meeting", "choosing a gift",
        "returning to school", "helping a sad friend", "cooking for one", "protecting my passwords",
        "reading more books", "learning to draw", "saying no politely", "cleaning the house quickly",
        "keeping plants alive", "preparing for winter", "finding a hobby",
    ]),
    "describe": ("Describe {}.", [
        "a busy market", "an old lighthouse", "a rainy morning", "an elephant", "a birthday party", "a snowy forest",
        "a train station at night", "your idea of a perfect day", "a kitchen in the morning", "a thunderstorm",
        "a penguin", "a small bakery", "a quiet library", "a football match", "a desert at noon", "a fishing village",
        "a wedding", "a cat asleep in the sun", "a walk on the beach", "an abandoned house", "a robot",
        "a spaceship landing", "a mountain lake", "a traffic jam", "a rose garden", "a school bus", "a circus",
        "a cup of hot chocolate", "a giraffe", "a castle", "a street musician", "a sunrise over the sea", "a farm",
        "a subway ride", "a picnic in the park", "a dragon", "a chess game", "a harbor in fog", "a barbershop",
        "a night sky without clouds", "a butterfly",
    ]),
    "benefits": ("What are the benefits of {}?", [
        "walking every day", "learning music", "solar energy", "eating breakfast", "public transport", "volunteering",
        "drinking tea", "riding a bicycle", "a good night's sleep", "planting trees", "reading aloud", "team sports",
        "keeping a pet", "learning to code", "cooking at home", "wind power", "a morning routine", "laughing",
        "traveling alone", "board games", "stretching", "saving early", "eating fish", "local farming",
        "working in a team", "writing by hand", "taking breaks", "cold showers", "gardening", "remote work",
        "dancing", "museums", "shared meals", "swimming", "a four day week", "open windows", "school uniforms",
        "secondhand clothes", "singing in a choir", "drawing", "city parks",
    ]),
    # asked in evaluation only
    "tell": ("Tell me about {}.", [
        "Japan", "the Amazon river", "honey bees", "the history of bread", "the Eiffel Tower", "polar bears",
        "the planet Mars", "chocolate", "the Roman Empire", "bamboo", "the human heart", "owls", "the Sahara",
        "silk", "whales", "the invention of the wheel", "Iceland", "wolves", "the Great Wall of China", "cheese",
        "hummingbirds", "the moon", "Vikings", "lightning", "Brazil", "sharks", "the Olympic Games", "paper",
        "kangaroos", "pyramids",
    ]),
    "plan": ("I want to {}. What should I know?", [
        "climb a mountain", "visit London", "get a tattoo", "buy a bicycle", "run a marathon", "become a teacher",
        "keep chickens", "build a website", "learn to cook", "go camping with children", "write a novel",
        "rent a flat", "adopt a dog", "give blood", "learn chess", "make my own soap", "start a book club",
        "drive across the country", "grow mushrooms", "sell old clothes", "go vegetarian", "play the piano",
        "open a cafe", "watch the northern lights", "learn to surf", "take up knitting", "move abroad",
        "buy my first telescope", "keep goldfish", "host an exchange student",
    ]),
    "people": ("What does {} do?", [
        "a plumber", "a nurse", "a judge", "an architect", "a librarian", "a pilot", "a farmer", "a journalist",
        "a dentist", "a firefighter", "an astronaut", "a translator", "a chef", "a mechanic", "a mayor", "a biologist",
        "a carpenter", "a coach", "a florist", "a geologist", "an accountant", "a vet", "an actor", "a lifeguard",
        "a tailor", "a programmer", "a police officer", "a composer", "a postman", "a surgeon",
    ]),
    "invent": ("Come up with {}.", [
        "a name for a bakery", "a theme for a party", "a science project for children", "a slogan for a bookshop",
        "a healthy snack", "a weekend activity for rainy days", "a story about a lost key", "a new holiday",
        "a game to play in the car", "a gift for a grandmother", "a question for a quiz about animals",
        "a title for a detective story", "a dish made from eggs", "a use for an old shoe box", "a dream job",
        "a rule for a classroom", "a superhero with a strange power", "a challenge for a photo club",
        "a message for a birthday card", "a way to thank a neighbor", "a name for a robot", "a recipe for a salad",
        "a surprise for a friend", "a plan for a quiet evening", "a riddle about water", "a logo for a music school",
        "a toy made from wood", "a warm up for a dance class", "a costume for carnival", "a sentence about hope",
    ]),
    "should": ("Should people {}?", [
        "drink coffee in the evening", "learn a second language", "eat less meat", "keep exotic pets", "work at night",
        "travel by train", "use paper books", "pay with cash", "let children use phones", "live in big cities",
        "wear helmets on bicycles", "nap during the day", "share their passwords", "eat dessert every day",
        "own a car", "vote at sixteen", "learn first aid", "buy organic food", "talk to strangers", "skip breakfast",
        "cook every day", "read the news daily", "wash their cars often", "plant trees in cities", "keep a diary",
        "use public transport", "exercise in the morning", "learn to swim", "write letters by hand", "adopt old dogs",
    ]),
}  # fmt: skip
HELD_OUT = ("tell", "plan", "people", "invent", "should")


# ---- constraints ---------------------------------------------------------------------------------------------------

OPENINGS = ["Sure thing", "In short", "Good question", "Here is my answer", "To begin with", "Let me explain"]
ENDINGS = ["That is all.", "I hope this helps.", "Any questions?"]
WORDS = ["always", "simple", "important", "example", "because", "people", "time", "useful"]


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text)


def bullets(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"\s*([-*\u2022]|\d+[.)])\s+\S", line)]


def sentences(text: str) -> list[str]:
    """Pieces of text between the marks that end a sentence."""
    return [part for part in re.split(r"[.!?]+(?:[\"')\]]*)(?:\s+|$)", text.strip()) if words(part)]


class Kind:
    """A kind of constraint: how an instance is drawn and worded, and how an answer is checked."""

    def __init__(self, wording: str, values: list[Any], keeps: Callable[[str, Any], bool], trained: bool = True):
        self.wording, self.values, self.keeps, self.trained = wording, values, keeps, trained


KINDS = {
    "at_most": Kind("Use at most {} words.", [12, 15, 20, 25, 30], lambda text, n: len(words(text)) <= n),
    "one_sentence": Kind("Answer in one sentence.", [""], lambda text, _: len(sentences(text)) == 1),
    "bullets": Kind(
        "Answer with exactly {} bullet points.",
        [2, 3, 4],
        lambda text, n: len(bullets(text)) == n,
    ),
    "no_commas": Kind("Do not use any commas.", [""], lambda text, _: "," not in text),
    "start": Kind(
        'Begin your answer with "{}".',
        OPENINGS,
        lambda text, start: text.lstrip(" \"'*").lower().startswith(start.lower()),
    ),
    "include": Kind('Use the word "{}".', WORDS, lambda text, word: word in map(str.lower, words(text))),
    # never trained on
    "end": Kind(
        'End your answer with "{}"', ENDINGS, lambda text, end: text.rstrip(" \"'*").endswith(end), trained=False
    ),
    "at_least": Kind("Use at least {} words.", [60, 70, 80], lambda text, n: len(words(text)) >= n, trained=False),
    "lowercase": Kind("Use lowercase letters only.", [""], lambda text, _: text == text.lower(), trained=False),
    "without": Kind(
        'Do not use the word "{}".',
        ["the", "is", "and"],
        lambda text, word: word not in map(str.lower, words(text)),
        trained=False,
    ),
}


@dataclass(frozen=True)
class Task:
    """A question with a constraint: a row of the prompt files."""

    prompt: str
    question: str
    family: str
    kind: str
    value: Any


def keeps(kind: str, value: Any, answer: str) -> bool:
    """Whether an answer keeps the constraint."""
    return KINDS[kind].keeps(answer, value)


def draw(families: list[str], kinds: list[str], count: int, chance: random.Random) -> list[Task]:
    """Draw tasks: every question once before any comes again, the kinds in equal shares."""
    questions = [(name, FAMILIES[name][0].format(subject)) for name in families for subject in FAMILIES[name][1]]
    chance.shuffle(questions)
    tasks = []
    for number in range(count):
        family, question = questions[number % len(questions)]
        kind = kinds[number % len(kinds)]
        value = chance.choice(KINDS[kind].values)
        tasks.append(Task(f"{question} {KINDS[kind].wording.format(value)}", question, family, kind, value))
    return tasks


def rows(tasks: list[Task]) -> list[dict[str, Any]]:
    return [asdict(task) for task in tasks]
