"""Children's stories by a grammar of our own, in simple words; a keyed source of chance decides each. No models."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from deltasmith.lab.features.grammar import Grammar, rules_of

__all__ = ["stories"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = {
    "she her her": "Anna Bea Clara Daisy Ella Fay Greta Hana Iris Jill Kate Lily Mara Nina Olive Pam Rosa Sue Tess Una "
    "Vera Wendy Zoe Amy Lucy Molly Sara Mia",
    "he him his": "Adam Ben Carl Dan Eli Finn Gus Hal Ivan Jack Kim Leo Max Ned Otto Paul Ray Sam Tim Ugo Vic Will Zac "
    "Tom Bob Joe Roy Pete",
}
_BEASTS = _words(
    "dog cat rabbit bear fox duck mouse owl frog pony lamb squirrel hedgehog goat turtle bird hen otter mole deer"
)
_RULES = rules_of(
    """
size = little small big tiny tall round huge
look = red blue green yellow shiny old new soft pretty wooden golden striped bright dusty warm
feel = happy sad excited scared proud angry sleepy lonely surprised worried glad curious shy brave tired
good = kind gentle brave clever patient friendly polite careful helpful
bad = mean grumpy rude careless greedy noisy bossy
thing = ball kite boat doll book hat drum bell cup lamp spoon basket blanket wagon key ring flute box coin ribbon \
 scarf train puzzle bucket ladder pencil mirror whistle shell button balloon umbrella teddy bicycle
food = cake bread soup apples berries cookies pie honey milk carrots cheese nuts pancakes plums jam porridge
place = garden park forest beach kitchen barn market school river hill meadow yard lake attic pond cave library field
when = one_day one_morning one_sunny_day one_evening one_rainy_afternoon last_winter in_the_spring on_a_cold_day \
 after_lunch before_breakfast on_Sunday
weather = sunny cloudy windy rainy snowy warm cold foggy stormy
animal = dog cat rabbit bear fox duck mouse owl frog pony lamb squirrel hedgehog goat turtle
part = nose tail paw ear leg foot knee hand
job = farmer baker teacher sailor painter doctor gardener king queen fisherman
game = hide_and_seek tag catch chess cards marbles jump_rope
tree = oak apple_tree pine willow cherry_tree bush
moved = ran walked jumped skipped hurried crept climbed rushed rolled swam
went:
    {he} [moved] to the [place]
    they went to the [place]
    {name} [moved] past the [tree]
    {he} [moved] all the way to the [place]
opening:
    Once upon a time, there was a [size] {kind} named {name}.
    Once upon a time there lived a [good] {kind}. {his} name was {name}.
    [when], {name} and {friend} were playing in the [place].
    {name} was a [good] {kind} who lived near the [place] with a [job].
    There was once a {kind} called {name}. {name} loved [food] and {his} [look] [thing].
    In a [size] house by the [place] lived {name}, a very [good] {kind}.
    {name} was three years old. {he} liked to play [game] with {friend}.
detail:
    Every day, {name} played with a [look] {thing}.
    {name} liked to eat [food] and [food].
    {he} had a friend, a [size] [animal] called {friend}.
    The {thing} was [look] and [size], and {name} loved it very much.
    {his} mom gave {him} a [look] {thing} for {his} birthday.
    It was a [weather] day and the [tree] was full of birds.
    {name} wanted to see the [place], but {his} [parent] said it was too far.
    {he} was always [feel] when it was [weather].
    The [place] was full of [size] flowers and [look] stones.
parent:
    mom
    dad
    grandma
    grandpa
    big sister
say:
    said {name}
    said {friend}
    {name} said
    {friend} asked
    {name} shouted
    {friend} laughed
speech:
    Look at my [look] {thing}
    I want to play [game]
    Can I have some [food], please
    I am so [feel]
    Do not be [feel], I will help you
    Let us go to the [place]
    We must be [good]
    Where is my {thing}
    That is a very [look] [thing]
    I know what to do
    Please do not be so [bad]
    You are my best friend
    It is too [weather] to go out
    My [parent] says we should share
    I found a [thing] under the [tree]
dialogue:
    "[speech]," [say].
    "[speech]!" [say].
    "[speech]," said {name}. "[speech]."
    "[speech]?" asked {friend}. "Yes," said {name}, "and [answer]."
    {name} looked at {friend} and said, "[speech]."
    "Oh no!" cried {name}. "[speech]!"
    {friend} thought for a moment. "[speech]," {he} heard {friend} say.
answer:
    we can share it
    I will come with you
    you can have some [food] too
    then we will go home
    it is not far from the [place]
lost:
    But then {name} could not find the {thing}. {he} looked under the bed and behind the [tree], but it was not there.
    Suddenly the wind took the {thing} and it flew over the [place].
    A [bad] [animal] took the {thing} and [moved] away to the [place].
search:
    {he} asked the [job], but the [job] had not seen it.
    {name} and {friend} looked in the [place] and in the [place]. They found a [look] [thing], but not the {thing}.
    [went]. There {he} saw a [size] hole, and in it there was something [look].
found:
    At last, {friend} found the {thing} in the [place]. {name} was so [feel] that {he} gave {friend} a big hug.
    The {thing} was under the [tree] all the time! {name} laughed and laughed.
    The [job] had kept the {thing} safe. "Thank you," said {name}.
fear:
    That night there was a loud noise in the [place]. {name} felt very [feel] and hid under the blanket.
    {name} saw a [size] shadow by the [tree]. {his} [part] began to shake.
    The water was deep and {name} was too [feel] to cross it.
brave:
    {name} took a deep breath and [moved] on. It was only a [animal] that was looking for [food]!
    {friend} took {his} hand. Together they [moved] to the [place], and {name} was not afraid any more.
    So {name} counted to [number], opened {his} eyes, and saw that it was only a [look] [thing].
number = three five ten seven
greed:
    {name} did not want to share the [food]. {he} ate and ate until {his} tummy hurt.
    {friend} wanted to play with the {thing}, but {name} said, "No, it is mine!" {friend} felt [feel] and went home.
    {name} took the [look] [thing] without asking. {his} [parent] was not happy.
sorry:
    {name} felt bad. {he} went to {friend} and said, "I am sorry. You can have the {thing} now."
    The next day {name} brought [food] for {friend}. "I am sorry that I was so [bad]," {he} said.
    {his} [parent] told {him} that it is better to be [good] than to be [bad]. {name} nodded.
hurt:
    Then {friend} fell from the [tree] and hurt {friends} [part].
    A [size] [animal] was stuck in the [place] and could not get out.
    The [job] was ill and could not bring the [food] to the market.
help:
    {name} pulled and pulled. [moved_up] came the [animal], and it was [feel] again.
    {name} brought water and a blanket, and sat with {friend} until {friend} felt better.
    {name} put the [food] into a [look] basket and [moved] to the [place], quick as a [animal].
moved_up = Up Out
make:
    {name} wanted to build a [size] [thing]. {he} took some wood, a rope and a [look] [thing].
    {name} and {friend} made [food] for the [job]. They mixed and stirred, and the kitchen was full of flour.
    {name} began to paint a [size] picture of the [place].
broke:
    But it fell down with a crash! {name} wanted to cry.
    It did not look right. "Try again," said {friend}.
    First it was too [size], then it was too [size].
worked:
    {he} tried again and again, and at last it was done. It was the most [look] [thing] of all.
    In the end it was perfect. The [job] clapped and said, "Well done, {name}!"
    They worked until evening, and then it stood there, [look] and [size].
ending:
    From that day on, {name} and {friend} were best friends.
    And they all lived happily ever after.
    {name} went home, ate some [food], and fell asleep with a smile.
    They played until the sun went down, and everyone was [feel].
    {name} learned that it is good to be [good]. The end.
    When {name} went to bed, {he} hugged the {thing} and said good night.
    {his} [parent] was very proud of {him}.
""".replace(" \\\n", " ")
)
_GRAMMAR = Grammar(_RULES)
_PLOTS = (
    ("opening", "detail", "dialogue", "lost", "dialogue", "search", "dialogue", "found", "ending"),
    ("opening", "detail", "fear", "dialogue", "dialogue", "brave", "ending"),
    ("opening", "detail", "detail", "greed", "dialogue", "sorry", "dialogue", "ending"),
    ("opening", "dialogue", "hurt", "dialogue", "help", "ending"),
    ("opening", "detail", "make", "broke", "dialogue", "worked", "ending"),
    ("opening", "lost", "fear", "brave", "found", "dialogue", "ending"),
    ("opening", "dialogue", "make", "greed", "broke", "sorry", "worked", "ending"),
    ("opening", "detail", "hurt", "search", "help", "dialogue", "dialogue", "ending"),
)


def stories(rng: Random) -> Iterator[str]:
    """Yield stories of five to nine sentences or short paragraphs, without end."""
    while True:
        plot = rng.choice(_PLOTS)
        values = _cast(rng)
        parts = [_GRAMMAR.expand(f"[{beat}]", rng, values) for beat in plot]
        cut = rng.randrange(2, len(parts))  # two or three paragraphs
        gap = rng.choice((" ", "\n\n"))
        yield " ".join(parts[:cut]) + "\n\n" + gap.join(parts[cut:]) + "\n"


def _cast(rng: Random) -> dict[str, str]:
    pronouns, names = rng.choice(tuple(_PEOPLE.items()))
    he, him, his = pronouns.split()
    name = rng.choice(names.split())
    others, other_names = rng.choice(tuple(_PEOPLE.items()))
    friend = rng.choice([other for other in other_names.split() if other != name])
    child = "girl" if he == "she" else "boy"
    kind = rng.choice((child, child, rng.choice(_BEASTS)))
    thing = rng.choice(_RULES["thing"])
    return {
        "name": name,
        "friend": friend,
        "friends": others.split()[2],
        "he": he,
        "him": him,
        "his": his,
        "kind": kind,
        "thing": thing,
    }
