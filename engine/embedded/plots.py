"""What happens in stories. Data only: each plot is a row of beats, each beat a set of sentences to choose from.

The fields are those of `stories.Cast`. An empty sentence means that a beat may be left out.
"""

from typing import Final

Beat = tuple[str, ...]
Plot = tuple[Beat, ...]

OPENINGS: Final[Beat] = (
    "Once upon a time there was {a_hero} named {name}. {He} lived {home}.",
    "{name} was {a_hero} who lived {home}.",
    "Long ago, {home}, there lived {a_hero} whose name was {name}.",
    "There once was {a_hero} called {name}. {His} home was {home}.",
    "Far away, {home}, lived {a_hero}. {His} name was {name}.",
    "This is the story of {name}, {a_hero} who lived {home}.",
)

HABITS: Final[Beat] = (
    "Every morning {name} {habit}.",
    "{name} had a best friend, {a_friend} named {friend}.",
    "More than anything, {name} loved {food}.",
    "Everyone knew {name}, because {he} {habit} every day.",
    "",
    "",
)

CLOSINGS: Final[Beat] = (
    "From that day on, {name} and {friend} were the best of friends.",
    "And that night {name} slept very well.",
    "{name} smiled all the way home.",
    "It was the best day of the whole {season}.",
    "And if you walk {place} today, you may still hear them laugh.",
    "{name} never forgot that day.",
    "Then they ate {food} together until the stars came out.",
    '"What a day!" said {name}, and {friend} nodded.',
    "The end.",
)

PLOTS: Final[tuple[Plot, ...]] = (
    (
        ("One day {name} lost {his} {colour} {thing}.", "One {weather} day, {his} {colour} {thing} was gone."),
        (
            "{He} looked under the bed and behind the door, but it was not there.",
            "{He} looked everywhere, {place} too.",
        ),
        ('"Why are you so sad?" asked {friend} the {friend_kind}.', "{friend} the {friend_kind} saw {him} cry."),
        ('"I cannot find my {thing}," said {name}.', '"My {thing} is gone," said {name}. "I had it this morning."'),
        (
            '"Then we will look for it together," said {friend}.',
            '"Do not worry. Four eyes see more than two," said {friend}.',
        ),
        ("They searched {place} until the sun was low.", "They walked {place} and looked behind every tree."),
        (
            "At last they found it in the tall grass.",
            "And there it was, on top of a big stone!",
            "A small bird had it in her nest, and she gave it back.",
        ),
        ('"Thank you," said {name}. "Alone I would never have found it."', "{name} was so happy that {he} danced."),
    ),
    (
        (
            "One night there was a big storm.",
            "That night the wind blew harder than ever before.",
            "One day dark clouds came over the hills.",
        ),
        (
            "The rain fell and the wind blew down the house of {friend}, {a_friend} who lived near by.",
            "A tree fell on the house of {friend} the {friend_kind}.",
        ),
        ('"Now I have no home," cried {friend}.', "{friend} sat in the rain and did not know what to do."),
        (
            "{name} was afraid of the storm, but {he} went out to help.",
            "{name} did not wait. {He} took a lamp and ran out.",
        ),
        ('"Come with me," {he} said. "My house is small, but it is warm."', '"You can stay with me," said {name}.'),
        (
            "They made hot {food} and told each other stories until the storm was over.",
            "They sat by the fire and listened to the rain.",
        ),
        (
            "In the morning the sun came out, and they built a new house together.",
            "The next day all the neighbors came and helped to build a better house.",
        ),
    ),
    (
        ("One morning {name} wanted to make {food}.", "It was a {weather} day, and {name} was hungry for {food}."),
        ("But there was no {needed} in the house.", "{He} had everything but {needed}."),
        (
            "So {he} went to {friend} the {friend_kind} and asked for some.",
            '"Maybe {friend} has some," {he} thought, and {he} knocked at the door of the {friend_kind}.',
        ),
        (
            '"I have {needed}," said {friend}, "but I have nothing to eat."',
            '"Take as much as you need," said {friend}.',
        ),
        ('"Then let us cook together," said {name}.', '"Come and eat with me," said {name}.'),
        ("They cooked all day, and the whole house smelled of {food}.", "They stirred and tasted and laughed."),
        (
            "They made so much that everyone {place} could have some.",
            "It was the best {food} they had ever tasted.",
        ),
        ("Food is better when it is shared.", "", ""),
    ),
    (
        (
            "One day {name} found {a_colour} {thing} {place}.",
            "As {he} walked {place}, {name} saw something {colour} in the grass. It was {a_thing}!",
        ),
        ('"How pretty!" {he} said. "Who does it belong to?"', '"I wish I could keep it," thought {name}.'),
        ("{He} asked the duck, but the duck shook her head.", "{He} asked everyone, one by one.", ""),
        (
            "Then {he} met {friend}, {a_friend}, who looked very sad.",
            "At the end of the road sat {friend} the {friend_kind}, crying.",
        ),
        (
            '"I have lost my {thing}," said {friend}. "It was a gift from my mother."',
            '"My {colour} {thing} is gone," said {friend}.',
        ),
        (
            "{name} thought for a moment. Then {he} gave it back.",
            '"Here it is," said {name}. "I found it {place}."',
        ),
        ('"You are very kind," said {friend}.', "{friend} was so happy that {fhe} gave {name} a hug."),
        ("A new friend is better than {a_colour} {thing}.", "", ""),
    ),
    (
        (
            "{name} had one secret: {he} was afraid of {fear}.",
            "But {name} was afraid of {fear}, and nobody knew it.",
        ),
        ("When the others went to play, {he} stayed at home.", "Every night {he} hid under {his} blanket."),
        (
            "One evening {friend} the {friend_kind} did not come home.",
            "Then one evening {he} heard a small voice calling for help. It was {friend} the {friend_kind}.",
        ),
        ('"Somebody must go and look," said {name}. "I will go."', "{name} took a deep breath and went out."),
        (
            "{His} knees were shaking, but {he} walked on, step by step.",
            "{He} sang a little song so that {he} would feel brave.",
        ),
        (
            "{He} found {friend} {place}, with a foot stuck under a root.",
            "At last {he} found {friend} {place}, cold and wet.",
        ),
        (
            '"You came for me!" said {friend}. "You are so brave."',
            '"Were you not afraid?" asked {friend}. "I was," said {name}, "but I came."',
        ),
        ("To be brave is to be afraid and to go on.", "", "After that, {name} was not so afraid any more."),
    ),
    (
        (
            "In the {season} there was a big race {place}.",
            "Every {season} there was a race, and everyone wanted to win.",
        ),
        (
            '"I am the fastest," said {friend} the {friend_kind}. "Nobody can beat me."',
            "{friend} the {friend_kind} had won every year.",
        ),
        ("{name} was not fast, but {he} wanted to try.", '"I will run too," said {name}, and everybody laughed.'),
        ("They ran over the bridge and up the hill.", "One, two, three, and off they went!"),
        (
            "In the middle of the race {friend} fell and hurt {fhis} foot.",
            "Near the end {friend} fell into the mud.",
        ),
        (
            "{name} could have won now. But {he} stopped and went back.",
            "{name} stopped at once and helped {fhim} up.",
        ),
        (
            "They walked to the end side by side, and everyone cheered.",
            "Together they came in last, and they got the loudest cheers of all.",
        ),
        (
            '"You are a better winner than me," said {friend}.',
            '"Thank you," said {friend}. "Next year we will run together."',
        ),
    ),
    (
        (
            "In spring {name} got a tiny seed from {friend} the {friend_kind}.",
            "{friend} the {friend_kind} gave {name} a seed. It was as small as a crumb.",
        ),
        (
            '"Give it water and time," said {friend}.',
            '"What will it be?" asked {name}. "Wait and see," said {friend}.',
        ),
        ("{name} put it in the ground and gave it water every day.", "{He} put it into a pot by the window."),
        ("One day went by, then two, then three. Nothing happened.", "But nothing grew, and {name} became sad."),
        ('"Maybe it is asleep," {he} thought, and {he} sang to it.', "{He} wanted to dig it up, but {he} waited."),
        (
            "Then, one {weather} morning, there was a small green leaf.",
            "At last a green tip came out of the ground.",
        ),
        (
            "It grew and grew until it was {a_colour} flower, taller than {name}.",
            "By the summer it was a tree with {colour} fruit, enough for everyone.",
        ),
        ("Good things need time.", "", ""),
    ),
    (
        (
            "One night {name} could not sleep, so {he} looked out of the window.",
            "On a clear night {name} sat {place} and looked at the sky.",
        ),
        (
            "A little star fell from the sky and landed in the garden.",
            "Something bright fell down, right behind the house.",
        ),
        (
            '"Oh no," said the star. "How will I get home?"',
            "It was a star, no bigger than {a_thing}, and it was crying.",
        ),
        ('"Do not cry," said {name}. "I will help you."', "{name} put it carefully into {his} hat."),
        (
            "First {he} tried to throw it, but it came down again.",
            "{He} climbed the tallest tree, but the sky was still too far.",
            "",
        ),
        (
            "Then {he} asked {friend} the {friend_kind}, who knew many things.",
            "{friend} the {friend_kind} woke up and had an idea.",
        ),
        (
            "They tied the star to {a_colour} kite and let the wind carry it up.",
            "They built a ladder of moonlight, and the star climbed it step by step.",
        ),
        (
            "Now one star in the sky blinks at {name} every night.",
            '"Thank you!" called the star, and it shone brighter than all the others.',
        ),
    ),
    (
        (
            "One day somebody new came to live near by. It was {friend}, {a_friend}.",
            "A new neighbor came: {friend} the {friend_kind}.",
        ),
        (
            "Nobody wanted to play with {fhim}, because {fhe} was so {friend_trait}.",
            "{friend} was shy and did not say a word.",
        ),
        ('"I will say hello," thought {name}.', "{name} baked {food} and knocked at the door."),
        ('"Hello, I am {name}. Do you like {food}?"', '"Would you like to play with me?" asked {name}.'),
        ("{friend} smiled for the first time.", '"I would love that," said {friend} in a quiet voice.'),
        ("They played {place} all day long.", "{friend} showed {name} how to make {a_thing} out of paper."),
        (
            "Soon all the others came and wanted to play too.",
            "After a while everybody knew what a good friend {friend} was.",
        ),
        ("A small hello can change a day.", "", ""),
    ),
    (
        (
            "One {weather} day {name} found an old map in a book.",
            "One day {name} pulled an old box out of the river. In it was a map.",
        ),
        ("On the map there was {a_colour} cross {place}.", '"Treasure!" cried {name}.'),
        (
            '{He} showed it to {friend} the {friend_kind}. "Let us go and find it!"',
            "{friend} the {friend_kind} wanted to come too.",
        ),
        (
            "They walked over three hills and across two rivers.",
            "They took a basket of {food} and went on their way.",
        ),
        ("At the place with the cross they began to dig.", "They dug until their hands were black."),
        (
            "There was a box, and in the box there was {a_thing}, and nothing else.",
            "They found an old chest with a note: the treasure is the way you came together.",
        ),
        (
            '"Is that all?" asked {friend}. Then they looked at each other and laughed.',
            '"We had the best day," said {name}. "That is a treasure too."',
        ),
    ),
    (
        ("{name} wanted to build a boat.", '"I will build a boat and see the sea," said {name} one day.'),
        (
            '"You cannot do that," said {friend} the {friend_kind}. "Nobody can."',
            "Everyone said that it could not be done.",
        ),
        ("But {name} took wood and rope and began.", "{name} worked every day, in sun and in rain."),
        (
            "The first boat sank. The second one sank too.",
            "The first boat was too small, and the second one had a hole.",
        ),
        (
            '"Try again," said a voice. It was {friend}. "I will help you."',
            "Then {friend} came with a hammer and said sorry.",
        ),
        (
            "The third boat was {colour} and strong, and it did not sink.",
            "Together they built {a_colour} boat with a sail.",
        ),
        (
            "They sailed down the river and saw the big blue sea.",
            "They sailed all day, and the fish jumped beside them.",
        ),
    ),
    (
        ("One day {name} heard a strange sound {place}.", "Every night there was a strange sound {place}."),
        ('"Is it a monster?" {he} asked.', "Some said it was a ghost. Some said it was only the wind."),
        ("{name} went to look, on the tips of {his} toes.", "{He} took a lamp and went to find out."),
        (
            "Behind a bush sat {friend}, {a_friend}, playing {a_colour} drum.",
            "It was only {friend} the {friend_kind}, singing out of tune.",
        ),
        (
            '"I wanted to learn a song for your birthday," said {friend}.',
            '"I am sorry," said {friend}. "I only play when I am alone."',
        ),
        ("{name} laughed. Then {he} sang along.", '"It is a good song," said {name}. "Play it for all of us!"'),
        ("Soon the whole village was dancing.", "The next day they played together {place}, and everyone clapped."),
    ),
)
