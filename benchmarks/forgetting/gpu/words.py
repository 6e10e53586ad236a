"""Short tasks that a small base can do: a word's opposite, or its French; their frames are not in the general set."""

OPPOSITES = """hot cold; big small; up down; left right; day night; black white; good bad; open closed; young old; rich
poor; hard soft; light dark; fast slow; early late; high low; near far; happy sad; strong weak; wet dry;
full empty; long short; love hate; war peace; first last; true false; right wrong; inside outside; before
after; always never; win lose; buy sell; push pull; begin end; alive dead; clean dirty; loud quiet; thick
thin; wide narrow; deep shallow; heavy light; brave cowardly; ancient modern; arrive depart; ascend
descend; attack defend; guilty innocent; import export; increase decrease; major minor; maximum minimum;
public private; sharp dull; smooth rough; success failure; tall short; vertical horizontal; victory
defeat; wild tame; wise foolish; front back; north south; east west; accept reject; borrow lend"""

FRENCH = """dog chien; cat chat; house maison; water eau; bread pain; milk lait; man homme; woman femme; child
enfant; book livre; red rouge; blue bleu; green vert; white blanc; black noir; one un; two deux; three
trois; four quatre; five cinq; day jour; night nuit; friend ami; love amour; king roi; queen reine; sea
mer; sun soleil; moon lune; sky ciel; tree arbre; flower fleur; bird oiseau; fish poisson; horse cheval;
hand main; head tête; heart cœur; eye œil; door porte; city ville; school école; summer été; winter
hiver; Monday lundi; Friday vendredi; brother frère; sister sœur; mother mère; father père; yes oui; no
non; good bon; big grand; small petit; new nouveau; old vieux; time temps; year année; world monde"""


def pairs(text: str) -> list[tuple[str, str]]:
    """Return the pairs of a list."""
    found = (pair.split() for pair in text.replace("\n", " ").split(";"))
    return [(first, second) for first, second in found]
