"""
An empty btrfs, made by ``tools/make_image_template.py``; do not edit.
"""

# What differs between two filesystems.
FSID = b"the filesystem's"
DEVICE_UUID = b"the one device's"
CHUNK_TREE_UUID = b"the chunk tree's"
TOP_LEVEL_UUID = b"the top level's "
TOP_LEVEL_UUID_KEY = b"the top \xfblevel's "
SIZE = b"its size"
TIME = b"its time"

# zlib of the blocks, each behind its offset (u64) and length (u32), in base85.
TEMPLATE = """
c-rmVJ&YS!9RTn*_I@OHTWmTC3RA!eBvuF^(DAW5o9ZY|vUlmDTr$yFw@FUe7l{+aN|)|Lbu@HoDCn*ODl8;IL$RVlLUfT3MRWzl6)D2n^RY9}cD&i$%Ln`W
N%ouZ|GhVF#?RLCO7q_kk}$Cz78<^nb#C?dv%xP0!|e9PAQWwj9>TS&Z|~mPyY|jX)uNjh>Fmz?!$D`z|0oM-YqDRqEBl*_DJ>pH+t-hZ<*1K#QSP*BFDCH;
LYh<^uAk&&$ESMtPS&}Z-Rs}THU`tD&V^P?u}8;qDV;pGq8hFGTrM6-eU2CH;|b>q1Hh|ilrL?o<!G_QJzk#fHun#r`k@!KZ`O~O#>uG%+HEYYr^cB^@s~Ev
USm05E{odHxT^g$s-MR3E3<zIjFNM?o=bDb*=xpM+Bo5PmA})|Q~WKUXj@F!WE{Wo-iLSI?+kyQ9sQnJj()E%)o1rV%8j?SLwI-A&#V7z6`#E0K>k7c&2->!
vhmZc>dy}V000000000000000006u=2b1SG`&QD}Pm1hYN$vIgX7TClTeJIHTG(HAPJijl{!W`6>_sHFD|7cPzV`Fl&dUW5=lOfHektyky*~O$2)|E`uXz>t
_K)*GnNnb_?C+~bfpI#G<+w%m!@R{*g2BJM6~cpX9H_eb<56I(7WmoU|NN(4jW>RM6!`j4xf&niUq8r?aXAir<NJBwjW}@kdwJlCr@1QdhwtVA0000000000
00000E`aJk_m(%5jCPw9(%J2j1>L>o;?rx-xg7O+k9S_&_*UW<ihm@0%C~LB2jRtj+A4cKZLj{PZR$Fwz9ehsalg1j@#%4BHMDMKx2}J<KP+Eqh0V?Oyq><K
_j!E(>#%=2JL&doGY`uF9CXiP9*%Fo9p3$*v!C6|_BRHdvkr6K<^8g)hGNdWcHbwV=lkS!Ty&l3<M)5F=t|F!3m`pNE`aj(|Fyix^B0WDLw>v+!dE6E$OFGC
5BKg-;A@kuZZohG1x95`hi_J0MJ+CsEe@i<zqiV+dd<MYGLS}r-&TR$X5fAq7)5~_)iL&(fvZ*Euz4Qe+A7ZD#DU9Y;NZ$+|Fbe9!GE{Pqea*1pH)`?00000
00000000000KkQjG>WQRKDP?x?d6|cUR0s{Z|rj`tVTV=cd%EtRnP5VX;FpcMTclr=iO@5Tw2s{;q{qH$&fTFR2fOq#qa7=E`Wn)=K@%sIjHEJ4Nta0cu;#~
t=#y0t4bdL0000000000000000002zqZKwc+w+2Hb2q7NKi)b0G5f<oXV|};opd{d-pujLGL;LUXuBvEK$+2?T|d#kg|I%^cz-*D?=%B>ih&<Z2M#A2Zx#Un
000000000000000001}-Rc?Ul=KsT@JeWMk_tQ_;?>=Y!^`cB?)(`0!asi~z&IPbiw0omj<^y_I9`e)e5H8gMe=UbH4&-NA1`f8Hf#O;`EHB0<Wmltav#U?4
u6jja6bE+av`F{L7Qbu;iZ`x0_{Y_G92PBV0RR91000000000000000m{O(&SSrd^8Ax}Fa&aHixd3+SeNW{AST5SFy8HkD0000000000000000B~}nGvopo
oh%o?7f*AoM(wiKCtD#rsJ*gQZhXEq-T?pr000000000000000fOFIeo14ogtee!fAMc$0nEm0PGwk2ap0(Yymlx^czNc~l6m1vf0=Qg1$8n|M-48lX_OpB0
{>Gs5>2?U0OcnqD00000000000000004}^*j)JAh^ZMd8)42fhwq+iJYggaiy|s7kot3IZH!srJosaVq4Ei5sA#F|e%XU>>gmJU9cpPnCZ;pGSU6ecR+KWki
fRH9thwCRf+3~5~y_0orX7~CxvW>xvQ|BTprr4w7xs*<xTTzWxeJ&S|q&~-s_VI*sg#qBzGwL>%(Zv$?czL?p+&_rwhhEgaSwCJHC#N20x3RRI8fO~CU)nf(
jpcl~ENVyNs`k^Uej3NG%>E@XO3vkaF3lZhuNi-7<Amq*Kk3a6!2
"""
