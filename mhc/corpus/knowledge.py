"""A small hand-written encyclopedia. One line an entity: name; then the attributes that its kind names in order."""

from dataclasses import dataclass

TABLES = {
    "animal": (("home", "food", "feature", "group", "weight"), """
lion; on the savannahs of Africa; antelopes and zebras; lives in prides and roars loudly; mammal; 190
elephant; in the savannahs and forests of Africa and Asia; grass, bark and fruit; has a long trunk; mammal; 5000
penguin; on the coasts of the southern seas; fish and krill; swims well but cannot fly; bird; 25
eagle; in mountains and open country; rabbits and fish; sees a mouse from far above; bird; 5
octopus; on the sea floor; crabs and shellfish; has eight arms and three hearts; mollusc; 10
frog; in ponds and wet meadows; flies and worms; leaps with its strong back legs; amphibian; 0.05
bat; in caves and old roofs; moths and mosquitoes; finds its way by echoes; mammal; 0.02
owl; in woods and barns; mice and voles; flies without a sound at night; bird; 1.5
camel; in the deserts of Africa and Asia; thorny plants and grass; stores fat in its hump; mammal; 500
shark; in all the oceans; fish and seals; grows new teeth all its life; fish; 700
honeybee; in hives near flowers; nectar and pollen; dances to show the way to flowers; insect; 0.0001
kangaroo; on the grasslands of Australia; grass and leaves; carries its young in a pouch; mammal; 60
tortoise; in dry grassland and scrub; leaves and flowers; can hide in its hard shell; reptile; 100
dolphin; in warm seas; fish and squid; breathes air and whistles to its friends; mammal; 200
giraffe; on the savannahs of Africa; acacia leaves; is the tallest animal on land; mammal; 1000
wolf; in forests and tundra; deer and elk; hunts in packs; mammal; 45
polar bear; on the ice of the Arctic; seals; has black skin under white fur; mammal; 450
crocodile; in warm rivers and swamps; fish and large animals; lies in wait like a log; reptile; 500
butterfly; in gardens and meadows; nectar; was once a caterpillar; insect; 0.0005
salmon; in rivers and the sea; small fish and shrimps; returns to its home river to lay eggs; fish; 5
hedgehog; in hedges and gardens; slugs and beetles; rolls into a ball of spines; mammal; 0.8
ostrich; on the open plains of Africa; seeds and leaves; lays the largest eggs of all; bird; 110
panda; in the bamboo forests of China; bamboo; eats for twelve hours a day; mammal; 100
blue whale; in all the great oceans; krill; is the largest animal that ever lived; mammal; 140000
ant; in nests under the ground; seeds and insects; carries many times its own weight; insect; 0.000005
beaver; in rivers and lakes; bark and twigs; builds dams of wood and mud; mammal; 20
parrot; in tropical forests; nuts and fruit; can copy the sound of words; bird; 0.5
chameleon; in the trees of Africa and Madagascar; insects; moves each eye on its own; reptile; 0.1
squirrel; in woods and parks; nuts and seeds; hides food for the winter; mammal; 0.4
horse; in meadows and stables; grass and oats; can sleep standing up; mammal; 500
"""),
    "country": (("capital", "continent", "language", "known", "people"), """
France; Paris; Europe; French; cheese, wine and the Eiffel Tower; 68
Japan; Tokyo; Asia; Japanese; sushi, temples and fast trains; 124
Brazil; Brasília; South America; Portuguese; football, carnival and the Amazon; 212
Egypt; Cairo; Africa; Arabic; the pyramids and the Nile; 112
Canada; Ottawa; North America; English and French; maple syrup and wide forests; 40
Italy; Rome; Europe; Italian; pasta, art and old ruins; 59
India; New Delhi; Asia; Hindi and English; spices and the Taj Mahal; 1430
Kenya; Nairobi; Africa; Swahili and English; safaris and long-distance runners; 55
Norway; Oslo; Europe; Norwegian; fjords and northern lights; 5
Mexico; Mexico City; North America; Spanish; tacos and ancient pyramids; 130
Greece; Athens; Europe; Greek; islands, olives and the first Olympic Games; 10
China; Beijing; Asia; Mandarin; the Great Wall and tea; 1410
Peru; Lima; South America; Spanish; Machu Picchu and llamas; 34
Australia; Canberra; Oceania; English; kangaroos and coral reefs; 27
Spain; Madrid; Europe; Spanish; flamenco and paella; 48
Germany; Berlin; Europe; German; bread, cars and castles; 84
Turkey; Ankara; Asia and Europe; Turkish; bazaars and hot-air balloons; 85
Morocco; Rabat; Africa; Arabic and Berber; markets, mint tea and the Sahara; 38
Thailand; Bangkok; Asia; Thai; beaches and spicy soups; 70
Iceland; Reykjavik; Europe; Icelandic; volcanoes and hot springs; 0.4
Argentina; Buenos Aires; South America; Spanish; tango and the pampas; 46
Portugal; Lisbon; Europe; Portuguese; tiles, sailors and custard tarts; 10
Poland; Warsaw; Europe; Polish; dumplings and amber; 37
New Zealand; Wellington; Oceania; English and Maori; sheep, rugby and green hills; 5
Ethiopia; Addis Ababa; Africa; Amharic; coffee and churches cut from rock; 126
Switzerland; Bern; Europe; German, French, Italian and Romansh; watches, chocolate and the Alps; 9
Cuba; Havana; North America; Spanish; old cars and music; 11
Finland; Helsinki; Europe; Finnish and Swedish; saunas and a thousand lakes; 6
"""),
    "planet": (("place", "feature", "moons", "year", "kind_of"), """
Mercury; first from the Sun; has craters and hardly any air; no moons; 88 days; rocky planet
Venus; second from the Sun; is hotter than an oven under thick clouds; no moons; 225 days; rocky planet
Earth; third from the Sun; is the only known home of life; one moon; 365 days; rocky planet
Mars; fourth from the Sun; is red with rusty dust; two moons; 687 days; rocky planet
Jupiter; fifth from the Sun; is the largest and has a great red storm; more than ninety moons; 12 years; gas giant
Saturn; sixth from the Sun; wears bright rings of ice; more than a hundred moons; 29 years; gas giant
Uranus; seventh from the Sun; rolls along on its side; 28 moons; 84 years; ice giant
Neptune; eighth from the Sun; has the fastest winds; 16 moons; 165 years; ice giant
"""),
    "element": (("symbol", "number", "state", "use", "feature"), """
hydrogen; H; 1; gas; rocket fuel; is the lightest of all
helium; He; 2; gas; balloons; never burns
carbon; C; 6; solid; pencils and steel; forms both coal and diamonds
nitrogen; N; 7; gas; fertilisers; makes up most of the air
oxygen; O; 8; gas; breathing and welding; lets things burn
neon; Ne; 10; gas; bright signs; glows red-orange
sodium; Na; 11; solid; table salt; reacts fiercely with water
aluminium; Al; 13; solid; cans and aeroplanes; is light and does not rust
silicon; Si; 14; solid; computer chips and glass; is found in sand
sulphur; S; 16; solid; matches and rubber; is yellow
chlorine; Cl; 17; gas; clean swimming pools; smells sharp and is poisonous
calcium; Ca; 20; solid; cement; makes bones and teeth hard
iron; Fe; 26; solid; steel and bridges; rusts in damp air
copper; Cu; 29; solid; electric wires; is reddish and conducts well
zinc; Zn; 30; solid; coats against rust; is bluish white
silver; Ag; 47; solid; jewellery and mirrors; conducts best of all metals
tin; Sn; 50; solid; solder and cans; melts easily
gold; Au; 79; solid; rings and coins; never rusts
mercury; Hg; 80; liquid; old thermometers; is a liquid metal
lead; Pb; 82; solid; batteries; is heavy and poisonous
"""),
    "instrument": (("family", "played", "feature", "music"), """
violin; string instrument; with a bow; has four strings; orchestras and folk bands
guitar; string instrument; with the fingers or a plectrum; has six strings; rock, folk and flamenco
piano; keyboard instrument; by pressing keys; has 88 keys; concerts and jazz
flute; wind instrument; by blowing across a hole; is often made of silver; orchestras
trumpet; brass instrument; by buzzing the lips; has three valves; jazz and fanfares
drum; percussion instrument; with sticks or hands; gives the beat; nearly every kind of music
harp; string instrument; by plucking with the fingers; has up to 47 strings; orchestras and Celtic songs
cello; string instrument; with a bow while sitting; sounds deep and warm; chamber music
clarinet; wind instrument; by blowing through a single reed; is made of dark wood; jazz and orchestras
accordion; keyboard instrument with bellows; by pulling and pressing the bellows; can be carried anywhere; tango and folk dances
saxophone; wind instrument; by blowing through a reed; is made of brass; jazz
organ; keyboard instrument; with hands and feet; has pipes of many sizes; churches
xylophone; percussion instrument; with two mallets; has wooden bars; school music
trombone; brass instrument; with a long slide; can glide between notes; big bands
"""),
    "tool": (("use", "part", "user", "care"), """
hammer; drive nails; a heavy head and a handle; carpenters; keep your fingers away from the nail
saw; cut wood; a blade with teeth; carpenters; let the blade do the work
screwdriver; turn screws; a tip that fits the screw; electricians; choose the right size
spanner; tighten bolts; jaws that grip the bolt; mechanics; pull it towards you
shovel; move earth; a broad blade; gardeners; bend your knees
rake; gather leaves; a row of teeth; gardeners; never leave it lying with the teeth up
ladder; reach high places; rungs between two rails; painters; set it on firm ground
needle; sew cloth; a sharp point and an eye; tailors; wear a thimble
drill; make holes; a motor and a turning bit; builders; wear glasses for the eyes
scissors; cut paper and cloth; two blades on a pivot; hairdressers; carry them with the points down
axe; split logs; a wedge of steel; foresters; look behind you before you swing
brush; spread paint; bristles on a handle; painters; wash it at once
compass; find north; a magnetic needle; hikers; keep it away from iron
thermometer; measure temperature; a scale and a sensor; nurses; wait until the number stays still
microscope; see tiny things; lenses in a tube; biologists; start with the weakest lens
telescope; see distant things; a large lens or mirror; astronomers; never point it at the Sun
whisk; beat eggs and cream; loops of wire; cooks; use a deep bowl
kettle; boil water; a lid and a spout; tea drinkers; do not overfill it
"""),
    "food": (("made", "origin", "taste", "eaten"), """
bread; flour, water, salt and yeast; ancient Egypt; mild and nutty; at nearly every meal
pizza; dough, tomatoes and cheese; Italy; savoury; hot from the oven
sushi; rice, seaweed and fish; Japan; fresh and slightly sour; with soy sauce
chocolate; cocoa, sugar and milk; Central America; sweet and a little bitter; as a treat
cheese; milk; the Middle East; salty or mild; on bread or with fruit
hummus; chickpeas, sesame and lemon; the Middle East; creamy and nutty; with flat bread
porridge; oats and milk or water; Scotland; mild; for breakfast
curry; vegetables or meat with spices; India; spicy; with rice
yoghurt; milk and helpful bacteria; Central Asia; sour and creamy; with fruit or honey
honey; the nectar that bees gather; beehives all over the world; very sweet; on toast or in tea
paella; rice, saffron and seafood; Spain; savoury; straight from the pan
pancake; flour, eggs and milk; many countries at once; mild and buttery; with syrup or lemon
tofu; soya beans; China; mild; fried or in soup
popcorn; maize that bursts in the heat; the Americas; salty or sweet; at the cinema
soup; vegetables, water and salt; every corner of the world; savoury; hot with a spoon
salad; leaves, oil and vinegar; the ancient Mediterranean; fresh; cold as a side dish
kimchi; cabbage, chilli and garlic; Korea; sour and hot; with rice
taco; a maize tortilla and a filling; Mexico; savoury and spicy; by hand
croissant; flour, butter and yeast; France and Austria; buttery; for breakfast with coffee
dumpling; dough with a filling; many countries from Poland to China; savoury; boiled or fried
"""),
    "profession": (("task", "place", "needs", "tools"), """
baker; bakes bread and cakes; in a bakery; must get up early; ovens and dough bowls
doctor; finds out what makes people ill; in a hospital or surgery; needs a calm mind; a stethoscope
firefighter; puts out fires and rescues people; wherever it burns; needs courage; hoses and ladders
teacher; helps pupils to learn; in a school; needs patience; books and a board
pilot; flies aeroplanes; high above the clouds; needs sharp eyes; instruments and a radio
farmer; grows crops and keeps animals; in fields and barns; works in all weathers; tractors and ploughs
librarian; looks after books and helps readers; in a library; needs a good memory; catalogues and shelves
plumber; repairs pipes and taps; in houses; needs strong hands; wrenches
vet; heals animals; in a clinic or on farms; needs gentle hands; bandages and needles
architect; plans buildings; at a drawing table; needs imagination; rulers and software
carpenter; builds with wood; in a workshop; must measure twice; saws and planes
journalist; finds news and writes about it; in the city and in the newsroom; asks good questions; a notebook
chef; plans menus and cooks; in a restaurant kitchen; needs a fine tongue; knives and pans
gardener; plants and prunes; in parks and gardens; knows the seasons; spades and shears
judge; decides cases by the law; in a court; must be fair; law books
programmer; writes software; at a computer; thinks in small steps; an editor and a keyboard
tailor; makes and alters clothes; in a small shop; needs a steady hand; needles and scissors
sailor; works on ships; at sea; must not be seasick; ropes and charts
dentist; looks after teeth; in a surgery; needs a steady hand; a mirror and a drill
postman; delivers letters and parcels; from door to door; walks many miles; a bag and a bicycle
"""),
    "sport": (("players", "gear", "aim", "place"), """
football; eleven players a side; a round ball; score more goals than the other team; on a grass pitch
tennis; two or four players; rackets and a ball; hit the ball so that it cannot be returned; on a court with a net
basketball; five players a side; a large ball; throw the ball through the hoop; on a hard court
swimming; one swimmer in each lane; a swimsuit and goggles; reach the wall first; in a pool
chess; two players; a board and 32 pieces; checkmate the king; at a table
cycling; single riders or teams; a bicycle and a helmet; cross the line first; on roads or a track
volleyball; six players a side; a light ball; make the ball touch the floor of the other side; on a court with a high net
skiing; one skier at a time; two skis and poles; come down in the shortest time; on snowy slopes
boxing; two fighters; padded gloves; land more clean blows; in a ring
archery; single archers; a bow and arrows; hit the centre of the target; on a range
rowing; one, two, four or eight rowers; a narrow boat and oars; finish before the other boats; on calm water
cricket; eleven players a side; a bat and a hard ball; score more runs; on an oval field
judo; two fighters; a white suit and a belt; throw the other on the back; on a mat
golf; single players; clubs and a small ball; need the fewest strokes; on a course with eighteen holes
"""),
    "tree": (("leaves", "fruit", "wood", "place"), """
oak; lobed leaves; acorns; hard wood for ships and barrels; in the woods of Europe
pine; long needles; cones; soft wood for houses and paper; in cool northern forests
birch; small toothed leaves; tiny winged seeds; pale wood for plywood; in northern woods
palm; large fans or feathers; dates or coconuts; a fibrous trunk for simple huts; on warm coasts
apple tree; oval leaves; apples; fine wood for spoons; in orchards
willow; long narrow leaves; fluffy seeds; bendy twigs for baskets; on river banks
maple; leaves with five points; seeds with wings; hard wood for violins; in North America and Asia
olive tree; silvery narrow leaves; olives; dense wood for bowls; round the Mediterranean
cherry tree; pointed oval leaves; cherries; reddish wood for furniture; in orchards
bamboo; slender blades; hardly ever any seeds; light stems for poles; in warm parts of Asia
"""),
}  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """A thing of a kind with its attributes by name."""

    name: str
    kind: str
    facts: dict[str, str]

    def __getitem__(self, attribute: str) -> str:
        return self.facts[attribute]


def _read() -> dict[str, list[Entity]]:
    kinds: dict[str, list[Entity]] = {}
    for kind, (attributes, table) in TABLES.items():
        rows = [[cell.strip() for cell in line.split(";")] for line in table.strip().splitlines()]
        assert all(len(row) == len(attributes) + 1 for row in rows), kind
        kinds[kind] = [Entity(name, kind, dict(zip(attributes, cells))) for name, *cells in rows]
    return kinds


KINDS = _read()
EVERYTHING = [entity for kind in KINDS.values() for entity in kind]
